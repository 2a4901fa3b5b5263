-- Are there as many memcg rows, without the root, as the target counts online and dying memcgs?
WITH counts AS (
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
        'counts {} online and {} dying memcgs, but memcgs has {} and {} rows',
        online_memcgs,
        dying_memcgs,
        online_rows,
        dying_rows
    ) AS reason
FROM counts
WHERE online_memcgs <> online_rows OR dying_memcgs <> dying_rows;
