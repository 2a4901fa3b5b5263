-- Which filesystem types make up the waste of each machine in a given run?
-- The row without a type is of the list_lrus that belong to no superblock. The rows of a target sum to its
-- host_waste.
CREATE MACRO fstype_waste_at(run) AS TABLE
WITH held AS (
    SELECT
        lru.target,
        known.fstype,
        CAST(count(*) AS BIGINT) AS list_lrus,
        CAST(sum(lru.list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lru.lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(lru.wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM sized_list_lrus AS lru
    LEFT JOIN stored_superblocks AS known
        ON known.run_id = run AND lru.target = known.target AND lru.superblock = known.address
    WHERE lru.run_id = run
    GROUP BY lru.target, known.fstype
),

counted AS (
    SELECT
        target,
        fstype,
        CAST(count(*) AS BIGINT) AS superblocks
    FROM stored_superblocks
    WHERE run_id = run
    GROUP BY target, fstype
)

SELECT
    target,
    fstype,
    coalesce(counted.superblocks, 0) AS superblocks,
    held.list_lrus,
    held.list_lru_bytes,
    held.lazy_bytes,
    held.wasted_bytes
FROM held
LEFT JOIN counted USING (target, fstype)
ORDER BY held.wasted_bytes DESC, target, fstype;
