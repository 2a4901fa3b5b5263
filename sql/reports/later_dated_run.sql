-- Which run was published before a given run started, though its date is later?
-- Of several, the one with the latest date. Later is by more than an hour: working clocks differ by less.
SELECT
    o.run_id,
    o.started_at
FROM _unrevised_runs AS o
JOIN runs AS r ON r.run_id = $run AND o.audit = r.audit
WHERE NOT o.in_future
    AND coalesce(o.sequence, 0) < r.sequence
    AND epoch(o.started_at) > epoch(r.started_at) + 3600
ORDER BY o.started_at DESC, o.run_id DESC
LIMIT 1;
