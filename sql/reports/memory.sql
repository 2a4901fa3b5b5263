-- How much memory does each ok target of a run have?
SELECT target, memory_bytes
FROM targets
WHERE run_id = $run AND status = 'ok';
