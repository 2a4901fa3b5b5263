-- What would a reboot alone give back on each eager machine in a given run, until its ids are used up again?
-- memcg_nr_cache_ids starts anew and grows to booted_cache_ids, the first of its sizes that has an id for every memcg
-- that is online now; the same superblocks are counted. wasted_bytes is what the lazy kernel would give back, and
-- for good.
CREATE MACRO reboot_savings_at(run) AS TABLE
WITH hosts AS (
    SELECT
        b.target,
        b.kernel_release,
        b.memcg_nr_cache_ids,
        b.online_ids,
        b.wasted_bytes,
        t.uptime_s,
        CAST(
            list_min(
                list_filter(
                    [4, 10, 22, 46, 94, 190, 382, 766, 1534, 3070, 6142, 12286, 24574, 49150, 65535],
                    lambda ids: ids >= b.online_ids
                )
            ) AS BIGINT
        ) AS booted_cache_ids,
        pointer_array_alloc_bytes(booted_cache_ids, t.layout, t.arch) AS booted_array_bytes
    FROM id_bloat_at(run) AS b
    JOIN targets AS t ON t.run_id = run AND b.target = t.target
    WHERE t.lazy_basis IS NOT NULL
),

freed AS (
    SELECT
        h.target,
        CAST(
            sum(
                l.list_lru_one_bytes // h.memcg_nr_cache_ids * (h.memcg_nr_cache_ids - h.booted_cache_ids)
                + l.pointer_array_bytes
                - l.nodes * h.booted_array_bytes
            ) AS BIGINT
        ) AS reboot_saves_bytes
    FROM hosts AS h
    JOIN sized_list_lrus AS l ON l.run_id = run AND h.target = l.target
    WHERE h.memcg_nr_cache_ids > h.booted_cache_ids AND l.list_lru_one_objects > 0
    GROUP BY h.target
)

SELECT
    hosts.target,
    hosts.kernel_release,
    hosts.uptime_s,
    hosts.memcg_nr_cache_ids,
    hosts.online_ids,
    hosts.booted_cache_ids,
    coalesce(freed.reboot_saves_bytes, 0) AS reboot_saves_bytes,
    hosts.wasted_bytes
FROM hosts
LEFT JOIN freed USING (target)
ORDER BY reboot_saves_bytes DESC, hosts.target;
