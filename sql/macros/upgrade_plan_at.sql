-- Which hosts of a given run, as few as possible, free this many bytes with the lazy kernel?
-- The hosts that waste most come first, so no smaller set frees as much. A host counts once: the audit of the host
-- itself, else its newest core. left_bytes is what remains to free after this row; if it is above 0 on the last row,
-- all hosts together free less than asked for.
CREATE MACRO upgrade_plan_at(run, bytes) AS TABLE
WITH ranking AS (
    SELECT
        row_number() OVER (ORDER BY wasted_bytes DESC, target) AS step,
        target,
        host,
        kernel_release,
        wasted_bytes,
        CAST(sum(wasted_bytes) OVER (ORDER BY wasted_bytes DESC, target ROWS UNBOUNDED PRECEDING) AS BIGINT)
            AS freed_bytes
    FROM host_waste_at(run)
    SEMI JOIN _machines_at(run) USING (target)
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
FROM ranking
WHERE freed_bytes - wasted_bytes < bytes
ORDER BY step;
