-- Which hosts of a given run, as few as can be, free this many bytes when they get the lazy kernel?
-- Those that waste most come first: no smaller set frees as much. A host counts once: as it was audited, else by the
-- newest of its cores. left_bytes is what the hosts up to this row leave to free; above 0 on the last row all of them
-- do not free that much.
CREATE MACRO upgrade_plan_at(run, bytes) AS TABLE
WITH ordered AS (
    SELECT
        row_number() OVER (ORDER BY wasted_bytes DESC, target) AS step,
        target,
        host,
        kernel_release,
        wasted_bytes,
        CAST(sum(wasted_bytes) OVER (ORDER BY wasted_bytes DESC, target ROWS UNBOUNDED PRECEDING) AS BIGINT)
            AS freed_bytes
    FROM host_waste_at(run)
    SEMI JOIN machines_at(run) USING (target)
    WHERE lazy_basis IS NOT NULL AND wasted_bytes > 0
)

SELECT
    step,
    target,
    host,
    kernel_release,
    wasted_bytes,
    freed_bytes,
    CAST(greatest(bytes - freed_bytes, 0) AS BIGINT) AS left_bytes
FROM ordered
WHERE freed_bytes - wasted_bytes < bytes
ORDER BY step;
