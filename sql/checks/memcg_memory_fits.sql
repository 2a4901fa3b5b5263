-- Do the parts of memcg_memory on a core fit into the kernel's own totals of slab and per-CPU memory?
-- A running kernel changes while it is read. Only what kmalloc() always takes from slabs is compared: an array may come
-- from vmalloc(), and child caches have per-CPU memory too.
WITH parts AS (
    SELECT
        run_id,
        target,
        sum(held_bytes) FILTER (part IN ('memcg_structs', 'memcg_slab_left')) AS slab_bytes,
        -- percpu_left has no row where the chunks of per-CPU memory and the total contradict each other.
        CASE
            WHEN bool_or(part = 'percpu_left')
                THEN sum(held_bytes) FILTER (part IN ('memcg_percpu', 'percpu_left'))
        END AS percpu_bytes
    FROM memcg_memory
    GROUP BY run_id, target
),

list_lru_sums AS (
    SELECT
        run_id,
        target,
        sum(list_lru_one_bytes) AS slab_bytes
    FROM _sized_list_lrus
    GROUP BY run_id, target
),

sums AS (
    SELECT
        t.target,
        CAST(coalesce(parts.slab_bytes, 0) + coalesce(list_lru_sums.slab_bytes, 0) AS BIGINT) AS slab_bytes,
        t.slab_unreclaimable_bytes + t.slab_reclaimable_bytes AS all_slab_bytes,
        CAST(coalesce(parts.percpu_bytes, 0) AS BIGINT) AS percpu_bytes,
        t.percpu_bytes AS all_percpu_bytes
    FROM targets AS t
    JOIN parts USING (run_id, target)
    LEFT JOIN list_lru_sums USING (run_id, target)
    WHERE t.kind = 'vmcore' AND t.consistency = 'exact'
)

SELECT target, format('{} bytes do not fit into {} bytes of slab', slab_bytes, all_slab_bytes) AS reason
FROM sums
WHERE slab_bytes > all_slab_bytes
UNION ALL
SELECT target, format('{} bytes do not fit into {} bytes of per-CPU memory', percpu_bytes, all_percpu_bytes) AS reason
FROM sums
WHERE percpu_bytes > all_percpu_bytes;
