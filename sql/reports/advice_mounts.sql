-- Which filesystem type costs the machines of a run most by its mounts, and on which machine?
-- The kernel's own filesystems and detached ones are left out: they cannot be unmounted.
WITH fstypes AS (
    SELECT
        s.target,
        s.fstype,
        count(*) AS superblocks,
        sum(s.list_lru_bytes) AS list_lru_bytes
    FROM _summed_superblocks_at($run) AS s
    JOIN _machines_at($run) AS m USING (target)
    WHERE
        s.address IS NOT NULL
        AND m.lazy_basis IS NOT NULL
        AND NOT coalesce(s.kernel_internal, false)
        AND NOT coalesce(s.detached, false)
    GROUP BY s.target, s.fstype
    HAVING sum(s.list_lrus) > 0
)

SELECT
    fstype,
    CAST(sum(superblocks) AS BIGINT) AS superblocks,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    first(target ORDER BY list_lru_bytes DESC, target) AS worst_target,
    CAST(first(superblocks ORDER BY list_lru_bytes DESC, target) AS BIGINT) AS worst_superblocks,
    CAST(max(list_lru_bytes) AS BIGINT) AS worst_bytes
FROM fstypes
GROUP BY fstype
ORDER BY list_lru_bytes DESC, fstype
LIMIT 1;
