-- Which labels has each ranked machine of a run?
SELECT
    target,
    labels
FROM targets
WHERE run_id = $run AND status = 'ok' AND cardinality(labels) > 0;
