-- Are the sums stored with each target those of its list_lrus, to the byte?
WITH list_lru_sums AS (
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
    FROM _sized_list_lrus
    GROUP BY run_id, target
),

target_sums AS (
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
        'stores the sums {}, but its list_lrus sum to {}',
        CAST(target_sums.sums AS VARCHAR),
        CAST(coalesce(list_lru_sums.sums, [0, 0, 0, 0, 0, 0, 0]) AS VARCHAR)
    ) AS reason
FROM target_sums
LEFT JOIN list_lru_sums USING (run_id, target)
WHERE target_sums.sums <> coalesce(list_lru_sums.sums, [0, 0, 0, 0, 0, 0, 0]);
