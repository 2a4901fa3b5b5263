-- How did the waste of an audit change from run to run, up to a given run?
SELECT
    h.run_id,
    h.started_at,
    h.targets,
    h.hosts,
    h.list_lru_bytes,
    h.wasted_bytes
FROM fleet_history AS h
JOIN runs AS r ON r.run_id = $run AND h.audit = r.audit AND h.started_at <= r.started_at
ORDER BY h.started_at DESC, h.run_id DESC
LIMIT 90;
