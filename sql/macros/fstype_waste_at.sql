-- Which filesystem types make up the waste of each machine in a given run?
-- The row without a type is of the list_lrus that belong to no superblock. The rows of a target sum to its
-- host_waste.
CREATE MACRO fstype_waste_at(run) AS TABLE
SELECT
    target,
    fstype,
    CAST(count(superblock) AS BIGINT) AS superblocks,
    CAST(sum(list_lrus) AS BIGINT) AS list_lrus,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
FROM superblock_waste_at(run)
GROUP BY target, fstype
ORDER BY wasted_bytes DESC, target, fstype;
