-- What would each commit of the lazy series save on each machine of a given run?
CREATE MACRO lazy_savings_at(run) AS TABLE
SELECT
    target,
    saves_objects_bytes,
    saves_transpose_bytes,
    saves_xarray_bytes,
    list_lru_bytes - lazy_bytes AS saves_bytes
FROM _summed_targets_at(run)
ORDER BY saves_bytes DESC, target;
