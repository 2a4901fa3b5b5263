-- Which slab cache of each machine in a given run is full of list_lru_one, and where is the rest of their bytes?
-- Active objects as drgn counts them: those on per-CPU free lists, which /proc/slabinfo also counts, are not active.
-- pct_explained is rounded down. An array of more than two pages comes from the page allocator and is in no slab cache.
-- The five byte columns from list_lru_one_bytes on sum to list_lru_bytes.
CREATE MACRO slab_reconciliation_at(run) AS TABLE
WITH held AS (
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
    FROM sized_list_lrus AS l
    JOIN targets AS t ON t.run_id = run AND l.target = t.target
    WHERE l.run_id = run
    GROUP BY l.target
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
    coalesce(held.list_lru_one_bytes, 0) AS list_lru_one_bytes,
    coalesce(held.pointer_array_slab_bytes, 0) AS pointer_array_slab_bytes,
    coalesce(held.pointer_array_bytes - held.pointer_array_slab_bytes, 0) AS pointer_array_page_bytes,
    coalesce(held.node_array_bytes, 0) AS node_array_bytes,
    coalesce(held.xa_node_bytes, 0) AS xa_node_bytes,
    coalesce(held.list_lru_bytes, 0) AS list_lru_bytes
FROM targets AS t
LEFT JOIN held USING (target)
WHERE t.run_id = run AND t.status = 'ok'
ORDER BY list_lru_one_bytes DESC, t.target;
