-- What do the list_lrus of each superblock of a given run sum to?
-- The row without an address has the list_lrus that belong to no superblock, one row for each target. The sums are
-- stored with the superblock. Runs of schema version 3 and older have none: their list_lrus are summed here.
CREATE MACRO _summed_superblocks_at(run) AS TABLE
WITH targets_without_sums AS (
    SELECT DISTINCT target
    FROM _stored_superblocks
    WHERE run_id = run AND list_lru_bytes IS NULL
),

list_lru_sums AS (
    SELECT
        target,
        superblock AS address,
        CAST(count(*) AS BIGINT) AS list_lrus,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes
    FROM _sized_list_lrus
    SEMI JOIN targets_without_sums USING (target)
    WHERE run_id = run AND superblock IS NOT NULL
    GROUP BY target, superblock
)

SELECT
    sb.* REPLACE (
        coalesce(sb.list_lrus, s.list_lrus, 0) AS list_lrus,
        coalesce(sb.list_lru_bytes, s.list_lru_bytes, 0) AS list_lru_bytes,
        coalesce(sb.lazy_bytes, s.lazy_bytes, 0) AS lazy_bytes
    )
FROM _stored_superblocks AS sb
LEFT JOIN list_lru_sums AS s USING (target, address)
WHERE sb.run_id = run
UNION ALL BY NAME
SELECT
    target,
    CAST(count(*) AS BIGINT) AS list_lrus,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes
FROM _sized_list_lrus
WHERE run_id = run AND superblock IS NULL
GROUP BY target;
