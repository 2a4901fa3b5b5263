-- What do the ids of each eager machine in a given run cost, so that it can be told for more or fewer? (For macros.)
-- id_bytes are the objects of one id in all list_lrus that have some, arrays and pointer_array_bytes their arrays, both
-- null where a machine has no ids yet, whose object could not be measured.
CREATE MACRO eager_ids_at(run) AS TABLE
WITH held AS (
    SELECT
        t.target,
        CAST(sum(l.list_lru_one_bytes // t.memcg_nr_cache_ids) AS BIGINT) AS id_bytes,
        CAST(sum(l.nodes) AS BIGINT) AS arrays,
        CAST(sum(l.pointer_array_bytes) AS BIGINT) AS pointer_array_bytes
    FROM targets AS t
    JOIN sized_list_lrus AS l ON l.run_id = run AND t.target = l.target
    WHERE t.run_id = run AND t.lazy_basis IS NOT NULL AND t.memcg_nr_cache_ids > 0 AND l.list_lru_one_objects > 0
    GROUP BY t.target
)

SELECT
    b.*,
    t.layout,
    t.arch,
    t.uptime_s,
    held.id_bytes,
    held.arrays,
    held.pointer_array_bytes
FROM id_bloat_at(run) AS b
JOIN targets AS t ON t.run_id = run AND b.target = t.target
LEFT JOIN held ON b.target = held.target
WHERE t.lazy_basis IS NOT NULL;
