-- How many removed cgroups does page cache keep on the machines of a run, and which directory has most of it?
-- The answer is one row, or none without such page cache. Deleted files are apart from others: to end their last use
-- frees them. dying_bytes are what the kernel holds for all removed cgroups of these machines.
WITH files AS (
    SELECT
        *,
        regexp_replace(file, '[^/]*$', '') AS directory
    FROM dying_causes_at($run)
    SEMI JOIN _machines_at($run) USING (target)
    WHERE cause IN ('file', 'shmem')
),

worst AS (
    SELECT
        target,
        cause,
        deleted,
        sum(files) AS files,
        sum(bytes) AS bytes,
        CASE WHEN sum(files) = 1 THEN any_value(file) ELSE directory END AS path
    FROM files
    WHERE file IS NOT NULL
    GROUP BY target, cause, deleted, directory
    ORDER BY bytes DESC, target, directory, deleted
    LIMIT 1
),

machines AS (
    SELECT
        target,
        dying_memcgs,
        dying_bytes
    FROM dying_cgroups_at($run)
    SEMI JOIN files USING (target)
)

SELECT
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(machines.dying_memcgs) AS BIGINT) AS dying_memcgs,
    CAST(sum(machines.dying_bytes) AS BIGINT) AS dying_bytes,
    (SELECT CAST(sum(bytes) AS BIGINT) FROM files) AS page_cache_bytes,
    any_value(worst.target) AS worst_target,
    any_value(worst.cause) AS worst_cause,
    any_value(worst.deleted) AS worst_deleted,
    CAST(any_value(worst.files) AS BIGINT) AS worst_files,
    CAST(any_value(worst.bytes) AS BIGINT) AS worst_bytes,
    any_value(worst.path) AS worst_path
FROM machines
LEFT JOIN worst ON true
HAVING count(*) > 0;
