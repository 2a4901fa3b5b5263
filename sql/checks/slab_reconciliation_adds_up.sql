-- Is what the list_lrus of a machine hold the sum of what is in slab caches and what is in pages, to the byte?
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

SELECT p.target, format('in slabs and pages are {}, the machine holds {}', p.list_lru_bytes, h.list_lru_bytes) AS reason
FROM host_waste AS h
JOIN parts AS p USING (target)
WHERE p.list_lru_bytes <> h.list_lru_bytes;
