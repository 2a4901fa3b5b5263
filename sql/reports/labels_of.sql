-- Which labels does each ranked machine of a run have?
SELECT
    target,
    entry.key AS label,
    entry.value AS value
FROM (
    SELECT
        target,
        unnest(map_entries(labels)) AS entry
    FROM targets
    WHERE run_id = $run AND status = 'ok'
)
ORDER BY target, label;
