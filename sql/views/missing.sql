-- Which targets of an audit has its newest run no answer of, and when was each last ok?
-- A status says how the newest run failed on it; without one the target is no longer asked for.
CREATE VIEW missing AS
WITH asked AS (
    SELECT
        r.audit,
        t.target,
        max_by(t.run_id, (r.started_at, r.run_id)) FILTER (t.status = 'ok') AS last_ok_run_id,
        max_by(t.started_at, (r.started_at, r.run_id)) FILTER (t.status = 'ok') AS last_ok_at
    FROM targets AS t
    JOIN unrevised_runs AS r USING (run_id)
    GROUP BY r.audit, t.target
)

SELECT
    asked.target,
    asked.last_ok_run_id,
    asked.last_ok_at,
    asked.audit,
    newest.run_id,
    t.status,
    t.error_type,
    t.error
FROM asked
JOIN latest_runs AS newest USING (audit)
LEFT JOIN targets AS t ON newest.run_id = t.run_id AND asked.target = t.target
WHERE t.status IS NULL OR t.status NOT IN ('ok', 'unsupported')
ORDER BY asked.audit, asked.target;
