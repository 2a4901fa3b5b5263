-- Which lazy kernels are the eager kernels of a run compared with?
SELECT DISTINCT lazy_target
FROM targets
WHERE run_id = $run AND status = 'ok' AND lazy_target IS NOT NULL
ORDER BY lazy_target;
