-- What do the objects and arrays of the ids of each eager machine of a given run cost?
-- id_bytes is the size of the objects of one id in all list_lrus that have objects. object_bytes are all these objects;
-- during a doubling some list_lrus have them for more ids than memcg_nr_cache_ids. arrays and pointer_array_bytes are
-- the pointer arrays of the same list_lrus. All four are null on a machine without ids: it has no object to measure.
CREATE MACRO _eager_ids_at(run) AS TABLE
WITH id_costs AS (
    SELECT
        t.target,
        CAST(sum(l.list_lru_one_bytes // l.list_lru_one_objects * l.nodes) AS BIGINT) AS id_bytes,
        CAST(sum(l.list_lru_one_bytes) AS BIGINT) AS object_bytes,
        CAST(sum(l.nodes) AS BIGINT) AS arrays,
        CAST(sum(l.pointer_array_bytes) AS BIGINT) AS pointer_array_bytes
    FROM targets AS t
    JOIN _sized_list_lrus AS l ON l.run_id = run AND t.target = l.target
    WHERE t.run_id = run AND t.lazy_basis IS NOT NULL AND t.memcg_nr_cache_ids > 0 AND l.list_lru_one_objects > 0
    GROUP BY t.target
)

SELECT
    b.*,
    t.layout,
    t.arch,
    t.uptime_s,
    id_costs.id_bytes,
    id_costs.object_bytes,
    id_costs.arrays,
    id_costs.pointer_array_bytes
FROM id_bloat_at(run) AS b
JOIN targets AS t ON t.run_id = run AND b.target = t.target
LEFT JOIN id_costs ON b.target = id_costs.target
WHERE t.lazy_basis IS NOT NULL;
