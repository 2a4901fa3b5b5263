-- How many targets of a run ended with each status and error type?
FROM coverage
WHERE run_id = $run
ORDER BY targets DESC, status, error_type NULLS FIRST;
