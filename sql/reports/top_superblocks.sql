-- Which ten filesystem types of mounts cost each of the worst machines of a run most?
-- The kernel's own mounts, too; the row without a type is of the list_lrus that belong to no superblock.
SELECT
    target,
    fstype,
    CAST(count(superblock) AS BIGINT) AS superblocks,
    min(mountpoint) AS mountpoint,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
FROM superblock_waste_at($run)
WHERE list_contains($targets, target)
GROUP BY target, fstype
QUALIFY row_number() OVER (PARTITION BY target ORDER BY sum(wasted_bytes) DESC, fstype) <= 10
ORDER BY target, wasted_bytes DESC, fstype;
