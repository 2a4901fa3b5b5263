-- What does each machine in a given run pay for ids: dead ones, lists of online memcgs that are empty, lists in use?
-- A dead id is below memcg_nr_cache_ids and no online memcg's. A list is in use where its memcg owns a charged object
-- or, where that was not read, has items. Each id has an equal share of a list_lru's objects and arrays; what the
-- lazy kernel keeps is taken from the online ids, by their entries. The three sum to host_waste; on a lazy kernel they
-- are 0. in_use_bytes can be negative: the xarray nodes of few entries cost more than the share of their ids.
CREATE MACRO id_bloat_at(run) AS TABLE
WITH ids AS (
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

shared AS (
    SELECT
        ids.target,
        l.wasted_bytes,
        nullif(l.cache_ids, 0) AS cache_ids,
        least(ids.online_ids, l.cache_ids) AS online_ids,
        least(coalesce(l.memcgs_charged, l.memcgs_with_items, 0), ids.online_ids, l.cache_ids) AS in_use_ids,
        l.list_lru_one_bytes + l.pointer_array_bytes AS ids_bytes,
        l.lazy_object_bytes + l.lazy_xa_node_bytes AS kept_bytes,
        nullif(coalesce(l.lazy_memcgs, ids.online_ids), 0) AS kept_ids
    FROM ids
    JOIN sized_list_lrus AS l ON l.run_id = run AND ids.target = l.target
    WHERE ids.eager
),

split AS (
    SELECT
        target,
        wasted_bytes,
        coalesce(ids_bytes * online_ids // cache_ids - kept_bytes, 0) AS online_bytes,
        coalesce(
            ids_bytes * in_use_ids // cache_ids
            - coalesce(kept_bytes * least(in_use_ids, kept_ids) // kept_ids, 0),
            0
        ) AS in_use_bytes
    FROM shared
),

summed AS (
    SELECT
        target,
        CAST(sum(wasted_bytes - online_bytes) AS BIGINT) AS dead_ids_bytes,
        CAST(sum(online_bytes - in_use_bytes) AS BIGINT) AS online_but_empty_bytes,
        CAST(sum(in_use_bytes) AS BIGINT) AS in_use_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM split
    GROUP BY target
)

SELECT
    ids.target,
    ids.kernel_release,
    ids.memcg_nr_cache_ids,
    ids.online_ids,
    ids.memcg_nr_cache_ids - ids.online_ids AS dead_ids,
    coalesce(summed.dead_ids_bytes, 0) AS dead_ids_bytes,
    coalesce(summed.online_but_empty_bytes, 0) AS online_but_empty_bytes,
    coalesce(summed.in_use_bytes, 0) AS in_use_bytes,
    coalesce(summed.wasted_bytes, 0) AS wasted_bytes
FROM ids
LEFT JOIN summed USING (target)
ORDER BY wasted_bytes DESC, ids.target;
