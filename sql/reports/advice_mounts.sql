-- Which kind of mount costs a run most, and what does one of them cost where they cost most?
-- The kernel's own mounts cannot be unmounted.
WITH kinds AS (
    SELECT
        s.target,
        s.fstype,
        count(*) AS superblocks,
        sum(s.list_lru_bytes) AS list_lru_bytes
    FROM superblock_waste_at($run) AS s
    JOIN machines_at($run) AS m USING (target)
    WHERE m.lazy_basis IS NOT NULL AND NOT coalesce(s.kernel_internal, false) AND s.fstype IS NOT NULL
    GROUP BY s.target, s.fstype
)

SELECT
    fstype,
    CAST(sum(superblocks) AS BIGINT) AS superblocks,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    arg_max(target, list_lru_bytes) AS worst_target,
    CAST(arg_max(superblocks, list_lru_bytes) AS BIGINT) AS worst_superblocks,
    CAST(max(list_lru_bytes) AS BIGINT) AS worst_bytes
FROM kinds
GROUP BY fstype
ORDER BY list_lru_bytes DESC, fstype
LIMIT 1;
