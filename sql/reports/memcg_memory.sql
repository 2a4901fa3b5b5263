-- What does each part of what memory cgroups cost hold on each target of a run?
FROM memcg_memory
WHERE run_id = $run
ORDER BY target, part;
