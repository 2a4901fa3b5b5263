-- Does every row belong to a target, and every row from a host to one that is ok or unsupported?
WITH collected_rows AS (
    SELECT DISTINCT run_id, target, 'superblocks' AS name
    FROM _stored_superblocks
    UNION ALL
    SELECT DISTINCT run_id, target, 'list_lrus' AS name
    FROM _sized_list_lrus
    UNION ALL
    SELECT DISTINCT run_id, target, 'memcgs' AS name
    FROM memcgs
    UNION ALL
    SELECT DISTINCT run_id, target, 'memcg_memory' AS name
    FROM memcg_memory
    UNION ALL
    SELECT DISTINCT run_id, target, 'dying_memcg_pages' AS name
    FROM dying_memcg_pages
),

good_targets AS (
    SELECT run_id, target
    FROM targets
    WHERE status IN ('ok', 'unsupported')
)

SELECT NULL AS target, format('{} has rows in {}, but is not an ok or unsupported target', target, name) AS reason
FROM collected_rows
ANTI JOIN good_targets USING (run_id, target)
UNION ALL
SELECT NULL AS target, format('{} has rows in attempts, but none in targets', target) AS reason
FROM attempts
ANTI JOIN targets USING (run_id, target);
