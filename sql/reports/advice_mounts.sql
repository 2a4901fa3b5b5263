-- Which kind of mount costs a run most, and what does one of them cost where they cost most?
-- The kernel's own mounts cannot be unmounted.
WITH mounted AS (
    SELECT
        s.target,
        s.address,
        s.fstype
    FROM stored_superblocks AS s
    JOIN machines_at($run) AS m USING (target)
    WHERE s.run_id = $run AND m.lazy_basis IS NOT NULL AND NOT coalesce(s.kernel_internal, false)
),

held AS (
    SELECT
        mounted.target,
        mounted.fstype,
        sum(lru.list_lru_bytes) AS list_lru_bytes
    FROM sized_list_lrus AS lru
    JOIN mounted ON lru.target = mounted.target AND lru.superblock = mounted.address
    WHERE lru.run_id = $run
    GROUP BY mounted.target, mounted.fstype
),

kinds AS (
    SELECT
        target,
        fstype,
        count(*) AS superblocks,
        any_value(held.list_lru_bytes) AS list_lru_bytes
    FROM mounted
    JOIN held USING (target, fstype)
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
FROM kinds
GROUP BY fstype
ORDER BY list_lru_bytes DESC, fstype
LIMIT 1;
