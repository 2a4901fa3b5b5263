-- What do the list_lrus of each ok target of a given run sum to?
-- The sums are stored with the target. Runs of schema version 2 and older have none: their list_lrus are summed here.
CREATE MACRO _summed_targets_at(run) AS TABLE
WITH targets_without_sums AS (
    SELECT target
    FROM targets
    WHERE run_id = run AND status = 'ok' AND list_lru_bytes IS NULL
),

list_lru_sums AS (
    SELECT
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_low_bytes) AS BIGINT) AS lazy_low_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(lazy_high_bytes) AS BIGINT) AS lazy_high_bytes,
        CAST(sum(saves_objects_bytes) AS BIGINT) AS saves_objects_bytes,
        CAST(sum(saves_transpose_bytes) AS BIGINT) AS saves_transpose_bytes,
        CAST(sum(saves_xarray_bytes) AS BIGINT) AS saves_xarray_bytes
    FROM _sized_list_lrus
    SEMI JOIN targets_without_sums USING (target)
    WHERE run_id = run
    GROUP BY target
)

SELECT
    t.* REPLACE (
        coalesce(t.list_lru_bytes, s.list_lru_bytes, 0) AS list_lru_bytes,
        coalesce(t.lazy_low_bytes, s.lazy_low_bytes, 0) AS lazy_low_bytes,
        coalesce(t.lazy_bytes, s.lazy_bytes, 0) AS lazy_bytes,
        coalesce(t.lazy_high_bytes, s.lazy_high_bytes, 0) AS lazy_high_bytes,
        coalesce(t.saves_objects_bytes, s.saves_objects_bytes, 0) AS saves_objects_bytes,
        coalesce(t.saves_transpose_bytes, s.saves_transpose_bytes, 0) AS saves_transpose_bytes,
        coalesce(t.saves_xarray_bytes, s.saves_xarray_bytes, 0) AS saves_xarray_bytes
    )
FROM targets AS t
LEFT JOIN list_lru_sums AS s USING (target)
WHERE t.run_id = run AND t.status = 'ok';
