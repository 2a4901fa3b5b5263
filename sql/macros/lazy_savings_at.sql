-- What would the lazy kernel give back on each machine in a given run, and by which of its three steps?
CREATE MACRO lazy_savings_at(run) AS TABLE
SELECT
    target,
    CAST(sum(saves_objects_bytes) AS BIGINT) AS saves_objects_bytes,
    CAST(sum(saves_transpose_bytes) AS BIGINT) AS saves_transpose_bytes,
    CAST(sum(saves_xarray_bytes) AS BIGINT) AS saves_xarray_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS saves_bytes
FROM sized_list_lrus
WHERE run_id = run
GROUP BY target
ORDER BY saves_bytes DESC, target;
