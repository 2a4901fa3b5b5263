-- Which runs of a run's audit are dated in the future?
SELECT
    o.run_id,
    o.started_at
FROM _unrevised_runs AS o
JOIN runs AS r ON r.run_id = $run AND o.audit = r.audit
WHERE o.in_future
ORDER BY o.position;
