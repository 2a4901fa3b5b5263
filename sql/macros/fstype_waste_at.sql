-- How much does each filesystem type waste on each machine of a given run?
-- The row without a type has the list_lrus that belong to no superblock. The rows of a target sum to its row in
-- host_waste.
CREATE MACRO fstype_waste_at(run) AS TABLE
SELECT
    target,
    fstype,
    CAST(count(address) AS BIGINT) AS superblocks,
    CAST(sum(list_lrus) AS BIGINT) AS list_lrus,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
    CAST(sum(list_lru_bytes - lazy_bytes) AS BIGINT) AS wasted_bytes
FROM _summed_superblocks_at(run)
GROUP BY target, fstype
HAVING sum(list_lrus) > 0
ORDER BY wasted_bytes DESC, target, fstype;
