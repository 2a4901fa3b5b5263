-- Do list_lrus and memcgs count the same entries of the lazy kernel? (A running lazy kernel makes some meanwhile.)
WITH by_list AS (
    SELECT run_id, target, CAST(sum(lazy_memcgs) AS BIGINT) AS entries
    FROM sized_list_lrus
    GROUP BY run_id, target
),

by_memcg AS (
    SELECT run_id, target, CAST(sum(lazy_lists) AS BIGINT) AS entries
    FROM memcgs
    GROUP BY run_id, target
)

SELECT t.target, format('list_lrus count {} entries, memcgs {}', by_list.entries, by_memcg.entries) AS reason
FROM targets AS t
JOIN by_list USING (run_id, target)
JOIN by_memcg USING (run_id, target)
WHERE t.lazy_basis IS NOT NULL AND by_list.entries <> by_memcg.entries;
