-- Are there as many superblock and list_lru rows as the target counts?
WITH row_counts AS (
    SELECT run_id, target, count(*) AS superblocks, 0 AS list_lrus
    FROM _stored_superblocks
    GROUP BY run_id, target
    UNION ALL
    SELECT run_id, target, 0 AS superblocks, count(*) AS list_lrus
    FROM _sized_list_lrus
    GROUP BY run_id, target
),

counts AS (
    SELECT
        t.target,
        t.superblocks,
        t.list_lrus,
        coalesce(sum(row_counts.superblocks), 0) AS superblock_rows,
        coalesce(sum(row_counts.list_lrus), 0) AS list_lru_rows
    FROM targets AS t
    LEFT JOIN row_counts USING (run_id, target)
    WHERE t.status = 'ok'
    GROUP BY t.run_id, t.target, t.superblocks, t.list_lrus
)

SELECT
    target,
    format(
        'counts {} superblocks and {} list_lrus, but the tables have {} and {} rows',
        superblocks,
        list_lrus,
        superblock_rows,
        list_lru_rows
    ) AS reason
FROM counts
WHERE superblocks <> superblock_rows OR list_lrus <> list_lru_rows;
