-- Which targets of a given run have a core that another target has too?
-- Of the ok targets with the same core_id all but the first by name have a row, which names the first.
CREATE MACRO core_copies_at(run) AS TABLE
SELECT
    run_id,
    target,
    min(target) OVER (PARTITION BY core_id) AS same_core_as
FROM targets
WHERE run_id = run AND status = 'ok' AND core_id IS NOT NULL
QUALIFY target <> same_core_as
ORDER BY target;
