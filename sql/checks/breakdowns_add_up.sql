-- Do the rows of cgroup_waste and id_bloat sum to the waste of the machine, to the byte?
-- superblock_waste and fstype_waste add up because of keys_unique, superblock_known and superblock_totals_kept.
WITH parts AS (
    SELECT 'cgroup_waste' AS name, target, list_lru_bytes, lazy_bytes, wasted_bytes
    FROM cgroup_waste
    UNION ALL
    SELECT
        'id_bloat' AS name,
        target,
        NULL AS list_lru_bytes,
        NULL AS lazy_bytes,
        dead_ids_bytes + online_but_empty_bytes + in_use_bytes AS wasted_bytes
    FROM id_bloat
),

sums AS (
    SELECT
        name,
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM parts
    GROUP BY name, target
)

SELECT
    h.target,
    format('{} sums to {} wasted bytes, but host_waste has {}', s.name, s.wasted_bytes, h.wasted_bytes) AS reason
FROM host_waste AS h
JOIN sums AS s USING (target)
WHERE
    s.wasted_bytes <> h.wasted_bytes
    OR s.lazy_bytes <> h.lazy_bytes
    OR s.list_lru_bytes <> h.list_lru_bytes;
