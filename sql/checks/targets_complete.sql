-- Does every planned target have exactly one row?
SELECT
    NULL AS target,
    format(
        'run {} planned {} targets and has {}, {} of them distinct',
        run_id,
        runs.targets,
        count(t.target),
        count(DISTINCT t.target)
    ) AS reason
FROM runs
LEFT JOIN targets AS t USING (run_id)
GROUP BY run_id, runs.targets
HAVING runs.targets <> count(t.target) OR count(t.target) <> count(DISTINCT t.target);
