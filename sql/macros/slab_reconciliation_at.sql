-- How much of its slab cache is list_lru_one on each machine of a given run, and where are the other bytes?
-- Active objects are counted as drgn does, without the objects on per-CPU free lists that /proc/slabinfo includes.
-- pct_explained is rounded down. An array of more than two pages comes from the page allocator, not from a slab cache.
-- The columns list_lru_one_bytes, pointer_array_slab_bytes, pointer_array_page_bytes, node_array_bytes and
-- xa_node_bytes sum to list_lru_bytes.
-- memcg_slab_bytes are the parts of memcg_memory in slab. Xarray nodes are left out: their slab cache is reclaimable.
-- The part memcg_kmem_caches is without free slots in reclaimable slab caches and without per-CPU memory.
-- Arrays that kvmalloc() took from vmalloc() are included, though the kernel does not count them as slab.
CREATE MACRO slab_reconciliation_at(run) AS TABLE
WITH list_lru_sums AS (
    SELECT
        l.target,
        CAST(sum(l.list_lru_one_bytes) AS BIGINT) AS list_lru_one_bytes,
        CAST(
            sum(
                CASE
                    WHEN l.pointer_array_bytes // nullif(l.nodes, 0) <= 2 * t.page_bytes THEN l.pointer_array_bytes
                    ELSE 0
                END
            ) AS BIGINT
        ) AS pointer_array_slab_bytes,
        CAST(sum(l.pointer_array_bytes) AS BIGINT) AS pointer_array_bytes,
        CAST(sum(l.node_array_bytes) AS BIGINT) AS node_array_bytes,
        CAST(sum(l.xa_node_bytes) AS BIGINT) AS xa_node_bytes,
        CAST(sum(l.list_lru_bytes) AS BIGINT) AS list_lru_bytes
    FROM _sized_list_lrus AS l
    JOIN targets AS t ON t.run_id = run AND l.target = t.target
    WHERE l.run_id = run
    GROUP BY l.target
),

memory AS (
    SELECT target, CAST(sum(held_bytes) AS BIGINT) AS held_bytes
    FROM memcg_memory
    WHERE
        run_id = run
        AND part IN (
            'list_lru', 'shrinker_info', 'memcg_structs', 'memcg_slab_left', 'memcg_kmem_caches', 'memcg_caches_arrays'
        )
    GROUP BY target
)

SELECT
    t.target,
    t.kernel_release,
    t.layout,
    t.slab_cache,
    t.slab_cache_active_objects,
    t.list_lru_one_in_cache,
    t.slab_cache_active_objects - t.list_lru_one_in_cache AS other_objects,
    floor(10000.0 * t.list_lru_one_in_cache / nullif(t.slab_cache_active_objects, 0)) / 100 AS pct_explained,
    t.slab_cache_bytes,
    coalesce(s.list_lru_one_bytes, 0) AS list_lru_one_bytes,
    coalesce(s.pointer_array_slab_bytes, 0) AS pointer_array_slab_bytes,
    coalesce(s.pointer_array_bytes - s.pointer_array_slab_bytes, 0) AS pointer_array_page_bytes,
    coalesce(s.node_array_bytes, 0) AS node_array_bytes,
    coalesce(s.xa_node_bytes, 0) AS xa_node_bytes,
    coalesce(s.list_lru_bytes, 0) AS list_lru_bytes,
    memory.held_bytes - coalesce(s.xa_node_bytes, 0) AS memcg_slab_bytes,
    t.slab_unreclaimable_bytes,
    floor(10000.0 * memcg_slab_bytes / nullif(t.slab_unreclaimable_bytes, 0)) / 100 AS pct_unreclaimable_explained
FROM targets AS t
LEFT JOIN list_lru_sums AS s USING (target)
LEFT JOIN memory USING (target)
WHERE t.run_id = run AND t.status = 'ok'
ORDER BY list_lru_one_bytes DESC, t.target;
