-- Is every status of a target or an attempt one of the published list?
SELECT NULL AS target, format('{} has the unknown status {}', target, status) AS reason
FROM (SELECT target, status FROM targets UNION ALL SELECT target, status FROM attempts)
WHERE status NOT IN (
    'ok', 'unsupported', 'unreachable', 'denied', 'no_drgn', 'bad_core', 'no_types', 'mismatch', 'bad_output',
    'over_budget', 'timeout', 'crashed', 'lost', 'inconsistent', 'not_run'
);
