-- How much do dead ids, empty lists and lists in use waste on each machine of a given run?
-- An id below memcg_nr_cache_ids is dead if no online memcg owns it. dead_ids_bytes include what a doubling under way
-- has allocated for new ids. A list is in use if its memcg owns a charged object or, where charges were not read, has
-- items. Each id has an equal share of a list_lru's objects and arrays.
-- What the lazy kernel keeps is subtracted from the online ids, by their entries. The three parts sum to wasted_bytes
-- of host_waste; on a lazy kernel they are 0. in_use_bytes is negative where the xarray nodes of a few entries cost
-- more than the share of their ids.
CREATE MACRO id_bloat_at(run) AS TABLE
WITH id_counts AS (
    SELECT
        t.target,
        t.kernel_release,
        t.memcg_nr_cache_ids,
        t.lazy_basis IS NOT NULL AS eager,
        CAST(count(m.cache_id) FILTER (m.cache_id >= 0) AS BIGINT) AS online_ids
    FROM targets AS t
    LEFT JOIN memcgs AS m ON m.run_id = run AND t.target = m.target
    WHERE t.run_id = run AND t.status = 'ok'
    GROUP BY ALL
),

list_lru_shares AS (
    SELECT
        i.target,
        l.wasted_bytes,
        nullif(l.cache_ids, 0) AS cache_ids,
        least(i.online_ids, l.cache_ids) AS online_ids,
        least(coalesce(l.memcgs_charged, l.memcgs_with_items, 0), i.online_ids, l.cache_ids) AS in_use_ids,
        l.list_lru_one_bytes + l.pointer_array_bytes AS ids_bytes,
        l.lazy_object_bytes + l.lazy_xa_node_bytes AS lazy_entry_bytes,
        nullif(coalesce(l.lazy_memcgs, i.online_ids), 0) AS lazy_entries
    FROM id_counts AS i
    JOIN _sized_list_lrus AS l ON l.run_id = run AND i.target = l.target
    WHERE i.eager
),

list_lru_parts AS (
    SELECT
        target,
        wasted_bytes,
        coalesce(ids_bytes * online_ids // cache_ids - lazy_entry_bytes, 0) AS online_bytes,
        coalesce(
            ids_bytes * in_use_ids // cache_ids
            - coalesce(lazy_entry_bytes * least(in_use_ids, lazy_entries) // lazy_entries, 0),
            0
        ) AS in_use_bytes
    FROM list_lru_shares
),

target_sums AS (
    SELECT
        target,
        CAST(sum(wasted_bytes - online_bytes) AS BIGINT) AS dead_ids_bytes,
        CAST(sum(online_bytes - in_use_bytes) AS BIGINT) AS online_but_empty_bytes,
        CAST(sum(in_use_bytes) AS BIGINT) AS in_use_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM list_lru_parts
    GROUP BY target
)

SELECT
    i.target,
    i.kernel_release,
    i.memcg_nr_cache_ids,
    i.online_ids,
    i.memcg_nr_cache_ids - i.online_ids AS dead_ids,
    coalesce(target_sums.dead_ids_bytes, 0) AS dead_ids_bytes,
    coalesce(target_sums.online_but_empty_bytes, 0) AS online_but_empty_bytes,
    coalesce(target_sums.in_use_bytes, 0) AS in_use_bytes,
    coalesce(target_sums.wasted_bytes, 0) AS wasted_bytes
FROM id_counts AS i
LEFT JOIN target_sums USING (target)
ORDER BY wasted_bytes DESC, i.target;
