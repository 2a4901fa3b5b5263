-- Which filesystem type costs the machines of a run most by its mounts, and on which machine?
-- The kernel's own mounts are left out: they cannot be unmounted.
WITH mounts AS (
    SELECT
        s.target,
        s.address,
        s.fstype
    FROM _stored_superblocks AS s
    JOIN _machines_at($run) AS m USING (target)
    WHERE s.run_id = $run AND m.lazy_basis IS NOT NULL AND NOT coalesce(s.kernel_internal, false)
),

fstype_sums AS (
    SELECT
        mounts.target,
        mounts.fstype,
        sum(lru.list_lru_bytes) AS list_lru_bytes
    FROM _sized_list_lrus AS lru
    JOIN mounts ON lru.target = mounts.target AND lru.superblock = mounts.address
    WHERE lru.run_id = $run
    GROUP BY mounts.target, mounts.fstype
),

fstypes AS (
    SELECT
        target,
        fstype,
        count(*) AS superblocks,
        any_value(fstype_sums.list_lru_bytes) AS list_lru_bytes
    FROM mounts
    JOIN fstype_sums USING (target, fstype)
    GROUP BY target, fstype
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
