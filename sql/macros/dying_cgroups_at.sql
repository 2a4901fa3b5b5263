-- Which machines in a given run keep memory cgroups that were removed (zombies), and under which cgroup were most made?
-- memcg_ids are in use of the 65,535 that a kernel has; without a free one no memory cgroup can be made. Pages, swap
-- entries and sockets of the removed hold them.
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

summed AS (
    SELECT
        target,
        CAST(sum(memcg_ids) AS BIGINT) AS memcg_ids,
        CAST(max(dying) AS BIGINT) AS dying_children,
        max_by(parent, (dying, -parent)) FILTER (dying > 0) AS parent
    FROM children
    GROUP BY target
)

SELECT
    t.target,
    t.kernel_release,
    t.online_memcgs,
    t.dying_memcgs,
    round(100.0 * t.dying_memcgs / nullif(t.online_memcgs + t.dying_memcgs, 0), 2) AS pct_dying,
    coalesce(summed.memcg_ids, 0) AS memcg_ids,
    summed.parent,
    known.path,
    coalesce(summed.dying_children, 0) AS dying_children
FROM targets AS t
LEFT JOIN summed USING (target)
LEFT JOIN memcgs AS known ON known.run_id = run AND t.target = known.target AND summed.parent = known.css_id
WHERE t.run_id = run AND t.status = 'ok'
ORDER BY t.dying_memcgs DESC, t.target;
