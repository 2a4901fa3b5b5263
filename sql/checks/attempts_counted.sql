-- Does every target have a row for each of its attempts?
SELECT
    NULL AS target,
    format('{} counts {} attempts, but has {} in the table attempts', target, t.attempts, count(a.attempt)) AS reason
FROM targets AS t
LEFT JOIN attempts AS a USING (run_id, target)
GROUP BY run_id, target, t.attempts
HAVING t.attempts <> count(a.attempt);
