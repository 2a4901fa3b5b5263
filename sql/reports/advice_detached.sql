-- How much do filesystems that are unmounted but still in use hold on the machines of a run, and where most?
-- To end what holds one frees its list_lrus at once, on lazy kernels too.
-- The answer is one row, or none without such filesystems. fstype is the type that holds most, of fstypes types.
WITH fstypes AS (
    SELECT
        s.target,
        s.fstype,
        count(*) AS superblocks,
        sum(s.list_lru_bytes) AS list_lru_bytes
    FROM _summed_superblocks_at($run) AS s
    SEMI JOIN _machines_at($run) USING (target)
    WHERE s.detached
    GROUP BY s.target, s.fstype
),

hosts AS (
    SELECT
        target,
        sum(superblocks) AS superblocks,
        sum(list_lru_bytes) AS list_lru_bytes
    FROM fstypes
    GROUP BY target
)

SELECT
    CAST(sum(superblocks) AS BIGINT) AS superblocks,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    (SELECT CAST(count(DISTINCT fstype) AS BIGINT) FROM fstypes) AS fstypes,
    (SELECT first(fstype ORDER BY list_lru_bytes DESC, fstype) FROM fstypes) AS fstype,
    first(target ORDER BY list_lru_bytes DESC, target) AS worst_target,
    CAST(first(superblocks ORDER BY list_lru_bytes DESC, target) AS BIGINT) AS worst_superblocks
FROM hosts
HAVING sum(list_lru_bytes) > 0;
