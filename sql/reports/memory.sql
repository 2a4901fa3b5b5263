-- How much memory does each machine have that a run has numbers of?
SELECT target, memory_bytes
FROM targets
WHERE run_id = $run AND status = 'ok';
