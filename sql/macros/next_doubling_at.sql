-- How near is each eager machine in a given run to the next growth of its ids, and what will that cost?
-- memcg_alloc_cache_id() gives the lowest free id; without one memcg_nr_cache_ids becomes 2 * (ids + 1), at most 65535,
-- and every list_lru gets a longer array and an object for each new id on each node, for good. Arrays are rounded up as
-- kmalloc() does. next_bytes is null where a machine has no ids yet, whose object then could not be measured.
CREATE MACRO next_doubling_at(run) AS TABLE
WITH hosts AS (
    SELECT
        target,
        kernel_release,
        layout,
        memcg_nr_cache_ids,
        online_ids,
        dead_ids AS ids_left,
        CASE
            WHEN memcg_nr_cache_ids < 65535 THEN least(greatest(2 * (memcg_nr_cache_ids + 1), 4), 65535)
        END AS next_cache_ids
    FROM id_bloat_at(run)
    JOIN (SELECT target, layout FROM targets WHERE run_id = run) USING (target)
    WHERE memcg_nr_cache_ids IS NOT NULL
),

requested AS (
    SELECT
        target,
        next_cache_ids,
        memcg_nr_cache_ids,
        8 * next_cache_ids + CASE WHEN layout = 'array' THEN 0 ELSE 16 END AS request_bytes
    FROM hosts
),

costs AS (
    SELECT
        r.target,
        CAST(sum(l.list_lru_one_size * l.nodes * (r.next_cache_ids - r.memcg_nr_cache_ids)) AS BIGINT) AS object_bytes,
        CAST(
            sum(
                l.nodes
                * CASE
                    -- kmalloc-96 and kmalloc-192 are there where the smallest object is below 64 bytes.
                    WHEN r.request_bytes BETWEEN 65 AND 96 AND l.list_lru_one_size < 64 THEN 96
                    WHEN r.request_bytes BETWEEN 129 AND 192 AND l.list_lru_one_size < 128 THEN 192
                    ELSE greatest(1 << length(bin(r.request_bytes - 1)), l.list_lru_one_size)
                END
                - l.pointer_array_bytes
            ) AS BIGINT
        ) AS array_bytes
    FROM requested AS r
    JOIN sized_list_lrus AS l ON l.run_id = run AND r.target = l.target
    WHERE r.next_cache_ids IS NOT NULL AND l.list_lru_one_objects > 0
    GROUP BY r.target
)

SELECT
    hosts.target,
    hosts.kernel_release,
    hosts.memcg_nr_cache_ids,
    hosts.online_ids,
    hosts.ids_left,
    hosts.next_cache_ids,
    costs.object_bytes AS next_object_bytes,
    costs.array_bytes AS next_array_bytes,
    costs.object_bytes + costs.array_bytes AS next_bytes
FROM hosts
LEFT JOIN costs USING (target)
ORDER BY hosts.ids_left, hosts.target;
