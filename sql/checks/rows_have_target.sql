-- Does every row belong to a target, and a row that a host sent to a good one?
WITH sent AS (
    SELECT DISTINCT run_id, target, 'superblocks' AS name
    FROM stored_superblocks
    UNION ALL
    SELECT DISTINCT run_id, target, 'list_lrus' AS name
    FROM sized_list_lrus
    UNION ALL
    SELECT DISTINCT run_id, target, 'memcgs' AS name
    FROM memcgs
),

good AS (
    SELECT run_id, target
    FROM targets
    WHERE status IN ('ok', 'unsupported')
)

SELECT NULL AS target, format('{} has rows in {} and is no good target', target, name) AS reason
FROM sent
ANTI JOIN good USING (run_id, target)
UNION ALL
SELECT NULL AS target, format('{} has attempts and no row', target) AS reason
FROM attempts
ANTI JOIN targets USING (run_id, target);
