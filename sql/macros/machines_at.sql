-- Which targets of a given run stand for a machine each, so that none is counted twice? (For plans and advice.)
-- Of the cores of one host the newest does, or none where the host itself was audited. What is no core is a machine of
-- its own whatever its name, and so is a core whose host has a name that names none: two localhosts are two machines.
CREATE MACRO machines_at(run) AS TABLE
WITH named AS (
    SELECT
        target,
        lazy_basis,
        captured_at,
        kind = 'vmcore' AS core,
        CASE WHEN NOT regexp_full_match(trim(host), '(\(none\)|localhost[46]?(\..*)?)?', 'i') THEN host END AS host
    FROM targets
    WHERE run_id = run AND status = 'ok'
)

SELECT
    target,
    lazy_basis
FROM named
QUALIFY NOT core OR row_number() OVER (
    PARTITION BY host, if(host IS NULL, target, NULL)
    ORDER BY core, captured_at DESC NULLS LAST, target
) = 1;
