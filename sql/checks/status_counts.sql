-- Do the counts of the run say what its targets say?
WITH found AS (
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
        'run {} counts {} good and {} ok targets, has {} and {}',
        run_id,
        r.good,
        r.status_ok,
        f.good,
        f.ok
    ) AS reason
FROM runs AS r
JOIN found AS f USING (run_id)
WHERE r.good <> f.good OR r.status_ok <> f.ok;
