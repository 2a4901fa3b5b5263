-- What does an upgrade of the machines of a run that waste memory free and take, with all that memory cgroups cost?
-- The answer is one row, or none where nothing is predicted: hosts are those with a prediction. shrinker_info_bytes is
-- what they hold in that part then.
WITH nets AS (
    SELECT n.*
    FROM upgrade_net_at($run) AS n
    JOIN host_waste_at($run) AS w USING (target)
    SEMI JOIN _machines_at($run) USING (target)
    WHERE w.lazy_basis IS NOT NULL AND w.wasted_bytes > 0
),

shrinker_infos AS (
    SELECT sum(upgraded_bytes) AS upgraded_bytes
    FROM memcg_memory
    SEMI JOIN nets USING (target)
    WHERE run_id = $run AND part = 'shrinker_info'
)

SELECT
    CAST(count(*) AS BIGINT) AS hosts,
    list_sort(list(DISTINCT n.target_kernel)) AS target_kernels,
    CAST(sum(n.frees_bytes) AS BIGINT) AS frees_bytes,
    CAST(sum(n.takes_bytes) AS BIGINT) AS takes_bytes,
    CAST(sum(n.net_bytes) AS BIGINT) AS net_bytes,
    bool_or(n.lower_bound) AS lower_bound,
    CAST(sum(n.lazy_error_bytes) AS BIGINT) AS lazy_error_bytes,
    CAST(coalesce(any_value(s.upgraded_bytes), 0) AS BIGINT) AS shrinker_info_bytes
FROM nets AS n
CROSS JOIN shrinker_infos AS s
HAVING count(*) > 0;
