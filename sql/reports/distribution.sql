-- How is the waste of a run distributed over its machines?
-- Each step is four times the one before: less than 1 MiB, less than 4 MiB and so on. below_bytes is the end of a step.
WITH steps AS (
    SELECT
        wasted_bytes,
        lower_bound,
        CASE
            WHEN wasted_bytes < 1048576 THEN 0
            ELSE 1 + CAST(floor(log2(wasted_bytes / 1048576) / 2) AS BIGINT)
        END AS step
    FROM host_waste_at($run)
),

step_counts AS (
    SELECT
        step,
        count(*) AS hosts,
        sum(wasted_bytes) AS wasted_bytes,
        bool_or(lower_bound) AS lower_bound
    FROM steps
    GROUP BY step
)

SELECT
    CAST(1048576 * power(4, all_steps.step) AS BIGINT) AS below_bytes,
    CAST(coalesce(step_counts.hosts, 0) AS BIGINT) AS hosts,
    CAST(coalesce(step_counts.wasted_bytes, 0) AS BIGINT) AS wasted_bytes,
    coalesce(step_counts.lower_bound, false) AS lower_bound
FROM (SELECT unnest(range((SELECT max(step) FROM step_counts) + 1)) AS step) AS all_steps
LEFT JOIN step_counts USING (step)
ORDER BY all_steps.step;
