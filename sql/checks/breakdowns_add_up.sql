-- Does the waste by cgroup and kind of id sum to that of the machine, to the byte?
-- That by superblock and by filesystem type does where keys_unique finds no superblock twice: all they do is to join.
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

summed AS (
    SELECT
        name,
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM parts
    GROUP BY name, target
)

SELECT h.target, format('{} sums to {}, the machine wastes {}', s.name, s.wasted_bytes, h.wasted_bytes) AS reason
FROM host_waste AS h
JOIN summed AS s USING (target)
WHERE
    s.wasted_bytes <> h.wasted_bytes
    OR s.lazy_bytes <> h.lazy_bytes
    OR s.list_lru_bytes <> h.list_lru_bytes;
