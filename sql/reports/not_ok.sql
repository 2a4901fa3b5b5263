-- Which targets of a run are not ok, and why?
SELECT
    target,
    status,
    error_type,
    error
FROM targets
WHERE run_id = $run AND status <> 'ok'
ORDER BY status, error_type, target;
