-- How near is each eager machine in a given run to the next growth of its ids, and what will that cost?
-- memcg_alloc_cache_id() gives the lowest free id; without one memcg_nr_cache_ids becomes 2 * (ids + 1), at most 65535,
-- and every list_lru gets longer arrays and an object for each new id on each node, for good. next_bytes is null at the
-- last size, and where a machine has no ids yet, whose object could not be measured.
CREATE MACRO next_doubling_at(run) AS TABLE
WITH hosts AS (
    SELECT
        b.target,
        b.kernel_release,
        b.memcg_nr_cache_ids,
        b.online_ids,
        b.dead_ids AS ids_left,
        CASE
            WHEN b.memcg_nr_cache_ids < 65535 THEN least(greatest(2 * (b.memcg_nr_cache_ids + 1), 4), 65535)
        END AS next_cache_ids,
        pointer_array_alloc_bytes(next_cache_ids, t.layout, t.arch) AS next_bytes
    FROM id_bloat_at(run) AS b
    JOIN targets AS t ON t.run_id = run AND b.target = t.target
    WHERE t.lazy_basis IS NOT NULL
),

costs AS (
    SELECT
        h.target,
        CAST(
            sum(l.list_lru_one_bytes // h.memcg_nr_cache_ids * (h.next_cache_ids - h.memcg_nr_cache_ids)) AS BIGINT
        ) AS object_bytes,
        CAST(sum(l.nodes * h.next_bytes - l.pointer_array_bytes) AS BIGINT) AS array_bytes
    FROM hosts AS h
    JOIN sized_list_lrus AS l ON l.run_id = run AND h.target = l.target
    WHERE h.next_cache_ids IS NOT NULL AND h.memcg_nr_cache_ids > 0 AND l.list_lru_one_objects > 0
    GROUP BY h.target
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
