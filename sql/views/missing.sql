-- Which targets of an audit were not read in its newest run, and when was each last ok?
-- status and error are those of the newest run; they are null where that run did not plan the target. A run that
-- carries the rows of an unchanged core over has found it, so last_ok_at is then the start of the run.
CREATE VIEW missing AS
WITH history AS (
    SELECT
        r.audit,
        t.target,
        max_by(t.run_id, r.position) FILTER (t.status = 'ok') AS last_ok_run_id,
        max_by(coalesce(t.started_at, r.started_at), r.position) FILTER (t.status = 'ok') AS last_ok_at
    FROM targets AS t
    JOIN _unrevised_runs AS r USING (run_id)
    GROUP BY r.audit, t.target
)

SELECT
    history.target,
    history.last_ok_run_id,
    history.last_ok_at,
    history.audit,
    r.run_id,
    t.status,
    t.error_type,
    t.error
FROM history
JOIN latest_runs AS r USING (audit)
LEFT JOIN targets AS t ON r.run_id = t.run_id AND history.target = t.target
WHERE t.status IS NULL OR t.status NOT IN ('ok', 'unsupported')
ORDER BY history.audit, history.target;
