-- Which mounts make up the waste of each machine in a given run?
-- The row without a superblock is of the list_lrus that belong to none. The rows of a target sum to its
-- host_waste.
CREATE MACRO superblock_waste_at(run) AS TABLE
WITH per_superblock AS (
    SELECT
        target,
        superblock AS address,
        CAST(count(*) AS BIGINT) AS list_lrus,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM sized_list_lrus
    WHERE run_id = run
    GROUP BY target, superblock
)

SELECT
    per_superblock.target,
    printf('0x%x', per_superblock.address) AS superblock,
    known.fstype,
    known.s_id,
    known.mounts,
    known.mountpoint,
    known.kernel_internal,
    known.owner,
    per_superblock.list_lrus,
    per_superblock.list_lru_bytes,
    per_superblock.lazy_bytes,
    per_superblock.wasted_bytes
FROM per_superblock
LEFT JOIN stored_superblocks AS known
    ON known.run_id = run AND per_superblock.target = known.target AND per_superblock.address = known.address
ORDER BY per_superblock.wasted_bytes DESC, per_superblock.target, per_superblock.address;
