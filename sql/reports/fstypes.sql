-- How much does each filesystem type waste in a run?
-- The row without a type has the list_lrus that belong to no superblock.
SELECT
    fstype,
    CAST(count(DISTINCT target) AS BIGINT) AS hosts,
    CAST(sum(superblocks) AS BIGINT) AS superblocks,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes,
    bool_or(_is_lower_bound(t.lazy_basis)) AS lower_bound
FROM fstype_waste_at($run)
JOIN (SELECT target, lazy_basis FROM targets WHERE run_id = $run) AS t USING (target)
GROUP BY fstype
ORDER BY wasted_bytes DESC, fstype;
