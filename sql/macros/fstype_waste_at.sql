-- How much does each filesystem type waste on each machine of a given run?
-- The row without a type has the list_lrus that belong to no superblock. The rows of a target sum to its row in
-- host_waste.
CREATE MACRO fstype_waste_at(run) AS TABLE
WITH list_lru_sums AS (
    SELECT
        lru.target,
        sb.fstype,
        CAST(count(*) AS BIGINT) AS list_lrus,
        CAST(sum(lru.list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lru.lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(lru.wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM _sized_list_lrus AS lru
    LEFT JOIN _stored_superblocks AS sb
        ON sb.run_id = run AND lru.target = sb.target AND lru.superblock = sb.address
    WHERE lru.run_id = run
    GROUP BY lru.target, sb.fstype
),

superblock_counts AS (
    SELECT
        target,
        fstype,
        CAST(count(*) AS BIGINT) AS superblocks
    FROM _stored_superblocks
    WHERE run_id = run
    GROUP BY target, fstype
)

SELECT
    target,
    fstype,
    coalesce(superblock_counts.superblocks, 0) AS superblocks,
    list_lru_sums.list_lrus,
    list_lru_sums.list_lru_bytes,
    list_lru_sums.lazy_bytes,
    list_lru_sums.wasted_bytes
FROM list_lru_sums
LEFT JOIN superblock_counts USING (target, fstype)
ORDER BY list_lru_sums.wasted_bytes DESC, target, fstype;
