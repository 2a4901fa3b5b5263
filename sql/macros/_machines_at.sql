-- Which target of a given run stands for each machine, so that no machine counts twice?
-- Of several cores of one host the newest stands for it; if the host itself was audited, that audit does. A target that
-- is not a core is always a machine of its own. So is a core whose host name is empty or a default, such as localhost,
-- except for further copies of the same core.
CREATE MACRO _machines_at(run) AS TABLE
WITH candidates AS (
    SELECT
        target,
        lazy_basis,
        captured_at,
        core_id,
        kind = 'vmcore' AS is_core,
        CASE WHEN NOT regexp_full_match(trim(host), '(\(none\)|localhost[46]?(\..*)?)?', 'i') THEN host END AS host
    FROM targets
    WHERE run_id = run AND status = 'ok'
)

SELECT
    target,
    lazy_basis
FROM candidates
QUALIFY NOT is_core OR row_number() OVER (
    PARTITION BY host, if(host IS NULL, core_id, NULL), if(host IS NULL AND core_id IS NULL, target, NULL)
    ORDER BY is_core, captured_at DESC NULLS LAST, target
) = 1;
