-- How many removed cgroups does page cache keep on the machines of a run, and which directory has most of it?
-- The answer is one row, or none without such page cache. Deleted files are apart from others: to end their last use
-- frees them. dying_memcgs is an upper bound: without those of these machines that certainly stay, because they have no
-- page, or pages of one other kind. dying_bytes are what the kernel holds for dying_memcgs; each is taken to hold the
-- same.
WITH pages AS (
    SELECT
        p.*,
        p.kind IN ('file', 'shmem') AS is_page_cache
    FROM dying_memcg_pages AS p
    SEMI JOIN _machines_at($run) USING (target)
    WHERE p.run_id = $run
),

files AS (
    SELECT
        *,
        regexp_replace(path, '[^/]*$', '') AS directory
    FROM pages
    WHERE is_page_cache
),

worst AS (
    SELECT
        target,
        kind AS cause,
        deleted,
        -- A file has a row for each nearest online ancestor.
        count(DISTINCT (superblock, inode)) AS files,
        sum(bytes) AS bytes,
        CASE WHEN count(DISTINCT (superblock, inode)) = 1 THEN any_value(path) ELSE directory END AS path
    FROM files
    WHERE path IS NOT NULL
    GROUP BY target, kind, deleted, directory
    ORDER BY bytes DESC, target, directory, deleted
    LIMIT 1
),

kinds AS (
    SELECT target, kind, sum(memcgs) AS memcgs
    FROM pages
    WHERE NOT is_page_cache
    GROUP BY target, kind
),

-- A memcg can have pages of several kinds, but none of 'other' has any.
stays AS (
    SELECT
        target,
        coalesce(max(memcgs) FILTER (kind = 'other'), 0) + coalesce(max(memcgs) FILTER (kind <> 'other'), 0) AS memcgs
    FROM kinds
    GROUP BY target
),

machines AS (
    SELECT
        d.target,
        d.dying_memcgs - coalesce(stays.memcgs, 0) AS dying_memcgs,
        CAST(d.dying_bytes AS HUGEINT) * (d.dying_memcgs - coalesce(stays.memcgs, 0)) // d.dying_memcgs AS dying_bytes
    FROM dying_cgroups_at($run) AS d
    SEMI JOIN files USING (target)
    LEFT JOIN stays USING (target)
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
