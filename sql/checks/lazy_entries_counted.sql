-- Do the list_lrus and the memcgs of an eager target count the same lazy entries?
-- A running lazy kernel creates entries while it is read, so it is not checked.
WITH list_lru_sums AS (
    SELECT run_id, target, CAST(sum(lazy_memcgs) AS BIGINT) AS entries
    FROM _sized_list_lrus
    GROUP BY run_id, target
),

memcg_sums AS (
    SELECT run_id, target, CAST(sum(lazy_lists) AS BIGINT) AS entries
    FROM memcgs
    GROUP BY run_id, target
)

SELECT
    t.target,
    format('list_lrus count {} lazy entries, but memcgs count {}', list_lru_sums.entries, memcg_sums.entries) AS reason
FROM targets AS t
JOIN list_lru_sums USING (run_id, target)
JOIN memcg_sums USING (run_id, target)
WHERE t.lazy_basis IS NOT NULL AND list_lru_sums.entries <> memcg_sums.entries;
