-- How much does each superblock waste on each machine of a given run?
-- The row without a superblock has the list_lrus that belong to no superblock. The rows of a target sum to its row in
-- host_waste.
CREATE MACRO superblock_waste_at(run) AS TABLE
WITH list_lru_sums AS (
    SELECT
        target,
        superblock AS address,
        CAST(count(*) AS BIGINT) AS list_lrus,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM _sized_list_lrus
    WHERE run_id = run
    GROUP BY target, superblock
)

SELECT
    s.target,
    printf('0x%x', s.address) AS superblock,
    sb.fstype,
    sb.s_id,
    sb.mounts,
    sb.mountpoint,
    sb.kernel_internal,
    sb.owner,
    s.list_lrus,
    s.list_lru_bytes,
    s.lazy_bytes,
    s.wasted_bytes
FROM list_lru_sums AS s
LEFT JOIN _stored_superblocks AS sb
    ON sb.run_id = run AND s.target = sb.target AND s.address = sb.address
ORDER BY s.wasted_bytes DESC, s.target, s.address;
