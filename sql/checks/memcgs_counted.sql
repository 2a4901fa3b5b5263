-- Do the memcg rows, the root left out, count the online and the dying ones?
WITH counted AS (
    SELECT
        t.target,
        t.online_memcgs,
        t.dying_memcgs,
        count(*) FILTER (m.state = 'online' AND m.parent IS NOT NULL) AS online_rows,
        count(*) FILTER (m.state = 'dying') AS dying_rows
    FROM targets AS t
    LEFT JOIN memcgs AS m USING (run_id, target)
    WHERE t.status = 'ok'
    GROUP BY t.run_id, t.target, t.online_memcgs, t.dying_memcgs
)

SELECT
    target,
    format(
        'says {} online and {} dying memcgs, sent rows of {} and {}',
        online_memcgs,
        dying_memcgs,
        online_rows,
        dying_rows
    ) AS reason
FROM counted
WHERE online_memcgs <> online_rows OR dying_memcgs <> dying_rows;
