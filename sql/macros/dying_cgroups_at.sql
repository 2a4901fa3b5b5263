-- How many removed memory cgroups does each machine of a given run keep, and below which cgroup are most of them?
-- They are also called zombies. Charged pages, swap entries and sockets keep them. A kernel has 65,535 memcg ids; when
-- memcg_ids reaches that, no memory cgroup can be created. dying_bytes are what they hold themselves, without the
-- memory that is charged to them; each is taken to hold the same.
CREATE MACRO dying_cgroups_at(run) AS TABLE
WITH children AS (
    SELECT
        target,
        parent,
        count(*) FILTER (state = 'dying') AS dying,
        count(*) FILTER (memcg_id > 0) AS memcg_ids
    FROM memcgs
    WHERE run_id = run
    GROUP BY target, parent
),

child_sums AS (
    SELECT
        target,
        CAST(sum(memcg_ids) AS BIGINT) AS memcg_ids,
        CAST(max(dying) AS BIGINT) AS dying_children,
        max_by(parent, (dying, -parent)) FILTER (dying > 0) AS parent
    FROM children
    GROUP BY target
),

memory AS (
    SELECT target, CAST(sum(dying_bytes) AS BIGINT) AS dying_bytes
    FROM memcg_memory
    WHERE run_id = run AND part IN ('shrinker_info', 'memcg_structs', 'memcg_percpu', 'memcg_kmem_caches')
    GROUP BY target
)

SELECT
    t.target,
    t.kernel_release,
    t.online_memcgs,
    t.dying_memcgs,
    round(100.0 * t.dying_memcgs / nullif(t.online_memcgs + t.dying_memcgs, 0), 2) AS pct_dying,
    coalesce(child_sums.memcg_ids, 0) AS memcg_ids,
    child_sums.parent,
    parent.path,
    coalesce(child_sums.dying_children, 0) AS dying_children,
    memory.dying_bytes,
    memory.dying_bytes // nullif(t.dying_memcgs, 0) AS dying_memcg_bytes,
    coalesce(child_sums.dying_children, 0) * dying_memcg_bytes AS dying_children_bytes
FROM targets AS t
LEFT JOIN child_sums USING (target)
LEFT JOIN memory USING (target)
LEFT JOIN memcgs AS parent ON parent.run_id = run AND t.target = parent.target AND child_sums.parent = parent.css_id
WHERE t.run_id = run AND t.status = 'ok'
ORDER BY t.dying_memcgs DESC, t.target;
