-- Are the sums stored with each superblock those of its list_lrus, to the byte?
WITH list_lru_sums AS (
    SELECT
        run_id,
        target,
        superblock AS address,
        count(*) AS list_lrus,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes
    FROM _sized_list_lrus
    WHERE superblock IS NOT NULL
    GROUP BY run_id, target, superblock
)

SELECT
    target,
    format(
        'superblock 0x{:x} stores {} list_lrus of {} and lazy {} bytes, but has {} of {} and {}',
        address,
        sb.list_lrus,
        sb.list_lru_bytes,
        sb.lazy_bytes,
        coalesce(s.list_lrus, 0),
        coalesce(s.list_lru_bytes, 0),
        coalesce(s.lazy_bytes, 0)
    ) AS reason
FROM _stored_superblocks AS sb
LEFT JOIN list_lru_sums AS s USING (run_id, target, address)
WHERE
    sb.list_lrus <> coalesce(s.list_lrus, 0)
    OR sb.list_lru_bytes <> coalesce(s.list_lru_bytes, 0)
    OR sb.lazy_bytes <> coalesce(s.lazy_bytes, 0);
