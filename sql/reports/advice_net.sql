-- What does an upgrade of the machines of a run that waste memory free and take, with all that memory cgroups cost?
-- The answer is one row, or none where nothing is predicted. shrinker_info_bytes is what they hold in that part then.
WITH hosts AS (
    SELECT target
    FROM host_waste_at($run)
    SEMI JOIN _machines_at($run) USING (target)
    WHERE lazy_basis IS NOT NULL AND wasted_bytes > 0
),

shrinker_infos AS (
    SELECT sum(upgraded_bytes) AS upgraded_bytes
    FROM memcg_memory
    SEMI JOIN hosts USING (target)
    WHERE run_id = $run AND part = 'shrinker_info'
)

SELECT
    list_sort(list(DISTINCT n.target_kernel)) AS target_kernels,
    CAST(sum(n.frees_bytes) AS BIGINT) AS frees_bytes,
    CAST(sum(n.takes_bytes) AS BIGINT) AS takes_bytes,
    CAST(sum(n.net_bytes) AS BIGINT) AS net_bytes,
    bool_or(n.lower_bound) AS lower_bound,
    CAST(coalesce(any_value(s.upgraded_bytes), 0) AS BIGINT) AS shrinker_info_bytes
FROM upgrade_net_at($run) AS n
SEMI JOIN hosts USING (target)
CROSS JOIN shrinker_infos AS s
HAVING count(*) > 0;
