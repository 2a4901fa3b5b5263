-- Does the target row count what its tables hold?
WITH held AS (
    SELECT run_id, target, count(*) AS superblocks, 0 AS list_lrus
    FROM stored_superblocks
    GROUP BY run_id, target
    UNION ALL
    SELECT run_id, target, 0 AS superblocks, count(*) AS list_lrus
    FROM sized_list_lrus
    GROUP BY run_id, target
),

counted AS (
    SELECT
        t.target,
        t.superblocks,
        t.list_lrus,
        coalesce(sum(held.superblocks), 0) AS superblock_rows,
        coalesce(sum(held.list_lrus), 0) AS list_lru_rows
    FROM targets AS t
    LEFT JOIN held USING (run_id, target)
    WHERE t.status = 'ok'
    GROUP BY t.run_id, t.target, t.superblocks, t.list_lrus
)

SELECT
    target,
    format(
        'says {} superblocks and {} list_lrus, sent rows of {} and {}',
        superblocks,
        list_lrus,
        superblock_rows,
        list_lru_rows
    ) AS reason
FROM counted
WHERE superblocks <> superblock_rows OR list_lrus <> list_lru_rows;
