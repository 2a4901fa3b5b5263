-- Do the bytes in slab caches and in pages sum to the list_lru_bytes of the machine?
WITH parts AS (
    SELECT
        target,
        list_lru_one_bytes
        + pointer_array_slab_bytes
        + pointer_array_page_bytes
        + node_array_bytes
        + xa_node_bytes AS list_lru_bytes
    FROM slab_reconciliation
)

SELECT
    p.target,
    format('slab caches and pages sum to {} bytes, list_lru_bytes is {}', p.list_lru_bytes, h.list_lru_bytes) AS reason
FROM host_waste AS h
JOIN parts AS p USING (target)
WHERE p.list_lru_bytes <> h.list_lru_bytes;
