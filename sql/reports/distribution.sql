-- How is the waste of a run spread over its machines?
-- Steps of four times: less than 1 MiB, less than 4 MiB and so on; below_bytes is where a step ends.
WITH steps AS (
    SELECT
        wasted_bytes,
        CASE
            WHEN wasted_bytes < 1048576 THEN 0
            ELSE 1 + CAST(floor(log2(wasted_bytes / 1048576) / 2) AS BIGINT)
        END AS step
    FROM host_waste_at($run)
),

counted AS (
    SELECT
        step,
        count(*) AS hosts,
        sum(wasted_bytes) AS wasted_bytes
    FROM steps
    GROUP BY step
)

SELECT
    CAST(1048576 * power(4, every.step) AS BIGINT) AS below_bytes,
    CAST(coalesce(counted.hosts, 0) AS BIGINT) AS hosts,
    CAST(coalesce(counted.wasted_bytes, 0) AS BIGINT) AS wasted_bytes
FROM (SELECT unnest(range((SELECT max(step) FROM counted) + 1)) AS step) AS every
LEFT JOIN counted USING (step)
ORDER BY every.step;
