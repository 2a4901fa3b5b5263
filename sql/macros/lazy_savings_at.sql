-- What would the lazy kernel give back on each machine in a given run, and by which of its three steps?
CREATE MACRO lazy_savings_at(run) AS TABLE
SELECT
    target,
    saves_objects_bytes,
    saves_transpose_bytes,
    saves_xarray_bytes,
    list_lru_bytes - lazy_bytes AS saves_bytes
FROM summed_targets_at(run)
ORDER BY saves_bytes DESC, target;
