-- Which twelve machines of a run hold most for memory cgroups, and in which parts?
-- Each machine counts once. Page cache is left out: it is a count, not a cost.
WITH parts AS (
    SELECT
        target,
        part,
        held_bytes,
        sum(held_bytes) OVER (PARTITION BY target) AS all_bytes
    FROM memcg_memory
    SEMI JOIN _machines_at($run) USING (target)
    WHERE run_id = $run AND part <> 'dying_page_cache'
)

SELECT
    target,
    part,
    held_bytes
FROM parts
QUALIFY dense_rank() OVER (ORDER BY all_bytes DESC, target) <= 12
ORDER BY all_bytes DESC, target, part;
