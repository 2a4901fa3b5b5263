-- Do the counts of each run match the statuses of its targets?
WITH status_counts AS (
    SELECT
        run_id,
        count(*) FILTER (status IN ('ok', 'unsupported')) AS good,
        count(*) FILTER (status = 'ok') AS ok
    FROM targets
    GROUP BY run_id
)

SELECT
    NULL AS target,
    format(
        'run {} counts {} good and {} ok targets, but targets has {} and {}',
        run_id,
        r.good,
        r.status_ok,
        s.good,
        s.ok
    ) AS reason
FROM runs AS r
JOIN status_counts AS s USING (run_id)
WHERE r.good <> s.good OR r.status_ok <> s.ok;
