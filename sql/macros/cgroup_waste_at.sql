-- How much do the children of each cgroup waste on each machine of a given run?
-- A row stands for the children of one cgroup: the share of the objects and arrays that their ids have, less the
-- list_lru entries that the lazy kernel keeps for them. Many dying children, a high last_serial_nr and a high dir_rev
-- mark a cgroup whose children come and go. The row without a parent has the rest: dead ids, node arrays and xarray
-- nodes. The rows of a target sum to its row in host_waste.
CREATE MACRO cgroup_waste_at(run) AS TABLE
WITH children AS (
    SELECT
        target,
        parent,
        count(*) FILTER (state = 'online') AS online_children,
        count(*) FILTER (state = 'dying') AS dying_children,
        count(*) FILTER (cache_id >= 0) AS ids,
        -- Older runs have no lazy_lists: each online memcg then has an entry in every list_lru.
        coalesce(sum(coalesce(lazy_lists, CAST(cache_id >= 0 AS INTEGER))), 0) AS entries,
        max(serial_nr) AS last_serial_nr
    FROM memcgs
    WHERE run_id = run AND parent IS NOT NULL
    GROUP BY target, parent
),

hosts AS (
    SELECT
        w.target,
        w.memcg_nr_cache_ids,
        w.lazy_basis IS NOT NULL AS eager,
        w.list_lru_bytes,
        w.lazy_bytes,
        coalesce(list_lru_sums.ids_bytes, 0) AS ids_bytes,
        coalesce(list_lru_sums.lazy_object_bytes, 0) AS lazy_object_bytes,
        coalesce(child_sums.ids, 0) AS ids,
        coalesce(child_sums.entries, 0) AS entries
    FROM host_waste_at(run) AS w
    LEFT JOIN (
        SELECT
            l.target,
            -- During a doubling some list_lrus have objects for more ids: these belong to no cgroup.
            sum(
                if(
                    l.cache_ids > t.memcg_nr_cache_ids,
                    (l.list_lru_one_bytes + l.pointer_array_bytes) * t.memcg_nr_cache_ids // l.cache_ids,
                    l.list_lru_one_bytes + l.pointer_array_bytes
                )
            ) AS ids_bytes,
            sum(l.lazy_object_bytes) AS lazy_object_bytes
        FROM _sized_list_lrus AS l
        JOIN targets AS t ON t.run_id = run AND l.target = t.target
        WHERE l.run_id = run
        GROUP BY l.target
    ) AS list_lru_sums USING (target)
    LEFT JOIN (
        SELECT target, sum(ids) AS ids, sum(entries) AS entries
        FROM children
        GROUP BY target
    ) AS child_sums USING (target)
),

lazy_shares AS (
    SELECT
        c.*,
        h.eager,
        h.ids_bytes,
        greatest(h.memcg_nr_cache_ids, h.ids, 1) AS cache_ids,
        CAST(coalesce(h.lazy_object_bytes * c.entries // nullif(h.entries, 0), 0) AS BIGINT) AS lazy_bytes
    FROM children AS c
    JOIN hosts AS h USING (target)
),

shares AS (
    SELECT
        *,
        -- A lazy kernel holds only the entries that it keeps.
        CASE WHEN eager THEN CAST(ids_bytes * ids // cache_ids AS BIGINT) ELSE lazy_bytes END AS list_lru_bytes
    FROM lazy_shares
),

share_sums AS (
    SELECT
        target,
        sum(list_lru_bytes) AS list_lru_bytes,
        sum(lazy_bytes) AS lazy_bytes
    FROM shares
    GROUP BY target
),

parts AS (
    SELECT
        s.target,
        s.parent,
        parent.path,
        CAST(s.online_children AS BIGINT) AS online_children,
        CAST(s.dying_children AS BIGINT) AS dying_children,
        s.last_serial_nr,
        parent.dir_rev,
        CAST(s.ids AS BIGINT) AS ids,
        s.list_lru_bytes,
        s.lazy_bytes
    FROM shares AS s
    LEFT JOIN memcgs AS parent ON parent.run_id = run AND s.target = parent.target AND s.parent = parent.css_id
    UNION ALL
    SELECT
        h.target,
        NULL AS parent,
        NULL AS path,
        NULL AS online_children,
        NULL AS dying_children,
        NULL AS last_serial_nr,
        NULL AS dir_rev,
        CAST(h.memcg_nr_cache_ids - h.ids AS BIGINT) AS ids,
        CAST(h.list_lru_bytes - coalesce(a.list_lru_bytes, 0) AS BIGINT) AS list_lru_bytes,
        CAST(h.lazy_bytes - coalesce(a.lazy_bytes, 0) AS BIGINT) AS lazy_bytes
    FROM hosts AS h
    LEFT JOIN share_sums AS a USING (target)
)

SELECT
    *,
    list_lru_bytes - lazy_bytes AS wasted_bytes
FROM parts
ORDER BY wasted_bytes DESC, target, parent;
