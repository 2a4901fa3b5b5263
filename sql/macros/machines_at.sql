-- Which targets of a given run stand for a machine each, so that none is counted twice? (For plans and advice.)
-- Of the cores of one host the newest does. Whatever else is audited is a machine of its own: many are named localhost.
CREATE MACRO machines_at(run) AS TABLE
SELECT
    target,
    lazy_basis
FROM targets
WHERE run_id = run AND status = 'ok'
QUALIFY row_number() OVER (
    PARTITION BY if(kind = 'vmcore', host, NULL), if(kind = 'vmcore' AND host IS NOT NULL, NULL, target)
    ORDER BY captured_at DESC NULLS LAST, target
) = 1;
