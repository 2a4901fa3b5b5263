-- Which ten filesystem types waste most on each given machine of a run?
-- The kernel's own mounts are included. The row without a type has the list_lrus that belong to no superblock.
SELECT
    target,
    fstype,
    CAST(count(superblock) AS BIGINT) AS superblocks,
    min(mountpoint) AS mountpoint,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes,
    bool_or(_is_lower_bound(t.lazy_basis)) AS lower_bound
FROM superblock_waste_at($run)
JOIN (SELECT target, lazy_basis FROM targets WHERE run_id = $run) AS t USING (target)
WHERE list_contains($targets, target)
GROUP BY target, fstype
QUALIFY row_number() OVER (PARTITION BY target ORDER BY sum(wasted_bytes) DESC, fstype) <= 10
ORDER BY target, wasted_bytes DESC, fstype;
