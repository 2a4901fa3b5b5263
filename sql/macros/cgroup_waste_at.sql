-- Under which cgroups were the ids made that each machine in a given run pays for, and who makes more of them?
-- A row is of the children of one cgroup: their ids' share of objects and arrays, less the entries that the lazy
-- kernel keeps for them. Many dying children, a high serial number (the last made) and a directory that changed often
-- tell who churns. The row without a parent is of dead ids and of what belongs to no one cgroup: node arrays, xarray
-- nodes. The rows of a target sum to its host_waste.
CREATE MACRO cgroup_waste_at(run) AS TABLE
WITH children AS (
    SELECT
        target,
        parent,
        count(*) FILTER (state = 'online') AS online_children,
        count(*) FILTER (state = 'dying') AS dying_children,
        count(*) FILTER (cache_id >= 0) AS ids,
        -- Without lazy_lists every online memcg counts as an entry in every list_lru.
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
        coalesce(held.ids_bytes, 0) AS ids_bytes,
        coalesce(held.kept_bytes, 0) AS kept_bytes,
        coalesce(counted.ids, 0) AS ids,
        coalesce(counted.entries, 0) AS entries
    FROM host_waste_at(run) AS w
    LEFT JOIN (
        SELECT
            target,
            sum(list_lru_one_bytes + pointer_array_bytes) AS ids_bytes,
            sum(lazy_object_bytes) AS kept_bytes
        FROM sized_list_lrus
        WHERE run_id = run
        GROUP BY target
    ) AS held USING (target)
    LEFT JOIN (
        SELECT target, sum(ids) AS ids, sum(entries) AS entries
        FROM children
        GROUP BY target
    ) AS counted USING (target)
),

kept AS (
    SELECT
        c.*,
        h.eager,
        h.ids_bytes,
        greatest(h.memcg_nr_cache_ids, h.ids, 1) AS cache_ids,
        CAST(coalesce(h.kept_bytes * c.entries // nullif(h.entries, 0), 0) AS BIGINT) AS lazy_bytes
    FROM children AS c
    JOIN hosts AS h USING (target)
),

shared AS (
    SELECT
        *,
        -- A lazy kernel holds what it keeps.
        CASE WHEN eager THEN CAST(ids_bytes * ids // cache_ids AS BIGINT) ELSE lazy_bytes END AS list_lru_bytes
    FROM kept
),

attributed AS (
    SELECT
        target,
        sum(list_lru_bytes) AS list_lru_bytes,
        sum(lazy_bytes) AS lazy_bytes
    FROM shared
    GROUP BY target
),

parts AS (
    SELECT
        s.target,
        s.parent,
        known.path,
        CAST(s.online_children AS BIGINT) AS online_children,
        CAST(s.dying_children AS BIGINT) AS dying_children,
        s.last_serial_nr,
        known.dir_rev,
        CAST(s.ids AS BIGINT) AS ids,
        s.list_lru_bytes,
        s.lazy_bytes
    FROM shared AS s
    LEFT JOIN memcgs AS known ON known.run_id = run AND s.target = known.target AND s.parent = known.css_id
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
    LEFT JOIN attributed AS a USING (target)
)

SELECT
    *,
    list_lru_bytes - lazy_bytes AS wasted_bytes
FROM parts
ORDER BY wasted_bytes DESC, target, parent;
