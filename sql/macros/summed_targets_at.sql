-- Which machines did a given run read, and what do the list_lrus of each sum to? (For views.)
-- The sums are kept with the target; those of runs of schema version 2 and older are made here.
CREATE MACRO summed_targets_at(run) AS TABLE
WITH unsummed AS (
    SELECT target
    FROM targets
    WHERE run_id = run AND status = 'ok' AND list_lru_bytes IS NULL
),

summed AS (
    SELECT
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_low_bytes) AS BIGINT) AS lazy_low_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(lazy_high_bytes) AS BIGINT) AS lazy_high_bytes,
        CAST(sum(saves_objects_bytes) AS BIGINT) AS saves_objects_bytes,
        CAST(sum(saves_transpose_bytes) AS BIGINT) AS saves_transpose_bytes,
        CAST(sum(saves_xarray_bytes) AS BIGINT) AS saves_xarray_bytes
    FROM sized_list_lrus
    SEMI JOIN unsummed USING (target)
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
LEFT JOIN summed AS s USING (target)
WHERE t.run_id = run AND t.status = 'ok';
