-- How did the waste of an audit change from run to run, up to a given run?
-- Earlier runs that are dated in the future are left out: the chart's axis would reach to their dates.
SELECT
    h.run_id,
    h.started_at,
    h.targets,
    h.hosts,
    h.list_lru_bytes,
    h.wasted_bytes,
    h.lower_bound_hosts > 0 AS lower_bound
FROM fleet_history AS h
JOIN _ordered_runs AS o USING (run_id)
JOIN _ordered_runs AS r ON r.run_id = $run AND h.audit = r.audit AND o.position <= r.position
WHERE NOT o.in_future OR o.run_id = $run
ORDER BY o.position DESC
LIMIT 90;
