-- What do the targets of a run hold and waste together, and how many machines are they?
SELECT
    CAST(count(*) AS BIGINT) AS hosts,
    (SELECT CAST(count(*) AS BIGINT) FROM _machines_at($run)) AS machines,
    (SELECT CAST(count(*) AS BIGINT) FROM core_copies_at($run)) AS copies,
    CAST(coalesce(sum(memory_bytes), 0) AS BIGINT) AS memory_bytes,
    CAST(coalesce(sum(list_lru_bytes), 0) AS BIGINT) AS list_lru_bytes,
    CAST(coalesce(sum(lazy_bytes), 0) AS BIGINT) AS lazy_bytes,
    CAST(coalesce(sum(wasted_bytes), 0) AS BIGINT) AS wasted_bytes,
    CAST(coalesce(sum(saves_objects_bytes), 0) AS BIGINT) AS saves_objects_bytes,
    CAST(coalesce(sum(saves_transpose_bytes), 0) AS BIGINT) AS saves_transpose_bytes,
    CAST(coalesce(sum(saves_xarray_bytes), 0) AS BIGINT) AS saves_xarray_bytes
FROM host_waste_at($run)
JOIN (SELECT run_id, target, memory_bytes FROM targets) USING (run_id, target)
LEFT JOIN lazy_savings_at($run) USING (target);
