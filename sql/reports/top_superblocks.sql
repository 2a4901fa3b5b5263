-- Which ten mounts cost each of the worst machines of a run most?
-- Mounts of one filesystem type that cost the same are one row.
SELECT
    target,
    fstype,
    kernel_internal,
    CAST(count(superblock) AS BIGINT) AS superblocks,
    min(mountpoint) AS mountpoint,
    any_value(owner) AS owner,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
FROM superblock_waste_at($run)
WHERE list_contains($targets, target)
GROUP BY target, fstype, kernel_internal
QUALIFY row_number() OVER (PARTITION BY target ORDER BY sum(wasted_bytes) DESC, fstype) <= 10
ORDER BY target, wasted_bytes DESC, fstype;
