-- How much does each superblock waste on each machine of a given run?
-- The row without a superblock has the list_lrus that belong to no superblock. The rows of a target sum to its row in
-- host_waste.
CREATE MACRO superblock_waste_at(run) AS TABLE
SELECT
    target,
    '0x' || lower(hex(address)) AS superblock,
    fstype,
    s_id,
    mounts,
    mountpoint,
    kernel_internal,
    detached,
    owner,
    list_lrus,
    list_lru_bytes,
    lazy_bytes,
    list_lru_bytes - lazy_bytes AS wasted_bytes
FROM _summed_superblocks_at(run)
WHERE list_lrus > 0
ORDER BY wasted_bytes DESC, target, address;
