-- How much does each filesystem type waste in a run?
-- The row without a type has the list_lrus that belong to no superblock.
SELECT
    fstype,
    CAST(count(DISTINCT target) AS BIGINT) AS hosts,
    CAST(sum(superblocks) AS BIGINT) AS superblocks,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
FROM fstype_waste_at($run)
GROUP BY fstype
ORDER BY wasted_bytes DESC, fstype;
