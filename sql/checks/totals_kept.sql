-- Are the sums that are kept with each target those of its list_lrus, to the byte?
WITH summed AS (
    SELECT
        run_id,
        target,
        [
            CAST(sum(list_lru_bytes) AS BIGINT),
            CAST(sum(lazy_low_bytes) AS BIGINT),
            CAST(sum(lazy_bytes) AS BIGINT),
            CAST(sum(lazy_high_bytes) AS BIGINT),
            CAST(sum(saves_objects_bytes) AS BIGINT),
            CAST(sum(saves_transpose_bytes) AS BIGINT),
            CAST(sum(saves_xarray_bytes) AS BIGINT)
        ] AS sums
    FROM sized_list_lrus
    GROUP BY run_id, target
),

kept AS (
    SELECT
        run_id,
        target,
        [
            list_lru_bytes,
            lazy_low_bytes,
            lazy_bytes,
            lazy_high_bytes,
            saves_objects_bytes,
            saves_transpose_bytes,
            saves_xarray_bytes
        ] AS sums
    FROM targets
    WHERE list_lru_bytes IS NOT NULL
)

SELECT
    target,
    format(
        'keeps the sums {}, its list_lrus have {}',
        CAST(kept.sums AS VARCHAR),
        CAST(coalesce(summed.sums, [0, 0, 0, 0, 0, 0, 0]) AS VARCHAR)
    ) AS reason
FROM kept
LEFT JOIN summed USING (run_id, target)
WHERE kept.sums <> coalesce(summed.sums, [0, 0, 0, 0, 0, 0, 0]);
