-- How did the targets of a run end, and why?
FROM coverage
WHERE run_id = $run
ORDER BY targets DESC, status, error_type NULLS FIRST;
