-- What do the targets of a run hold and waste together, and how many machines are they?
-- The sums named machines_ count each machine once, the others each target. expected_hosts are the eager hosts whose
-- waste is no lower bound.
SELECT
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(count(*) FILTER (relation = 'machine') AS BIGINT) AS machines,
    CAST(count(*) FILTER (relation = 'copy') AS BIGINT) AS copies,
    CAST(count(*) FILTER (relation = 'older core') AS BIGINT) AS older_cores,
    CAST(count(*) FILTER (relation = 'again') AS BIGINT) AS further_audits,
    CAST(count(*) FILTER (lazy_basis IS NOT NULL AND NOT lower_bound) AS BIGINT) AS expected_hosts,
    coalesce(bool_or(lower_bound), false) AS lower_bound,
    coalesce(bool_or(lower_bound) FILTER (relation = 'machine'), false) AS machines_lower_bound,
    CAST(coalesce(sum(memory_bytes), 0) AS BIGINT) AS memory_bytes,
    CAST(coalesce(sum(list_lru_bytes), 0) AS BIGINT) AS list_lru_bytes,
    CAST(coalesce(sum(lazy_bytes), 0) AS BIGINT) AS lazy_bytes,
    -- The errors of hosts are independent, but each also covers what a sample cannot tell: a bound for the sum.
    CAST(sum(lazy_error_bytes) AS BIGINT) AS lazy_error_bytes,
    CAST(coalesce(sum(wasted_bytes), 0) AS BIGINT) AS wasted_bytes,
    CAST(coalesce(sum(memory_bytes) FILTER (relation = 'machine'), 0) AS BIGINT) AS machines_memory_bytes,
    CAST(coalesce(sum(list_lru_bytes) FILTER (relation = 'machine'), 0) AS BIGINT) AS machines_list_lru_bytes,
    CAST(coalesce(sum(lazy_bytes) FILTER (relation = 'machine'), 0) AS BIGINT) AS machines_lazy_bytes,
    CAST(coalesce(sum(wasted_bytes) FILTER (relation = 'machine'), 0) AS BIGINT) AS machines_wasted_bytes,
    CAST(coalesce(sum(saves_objects_bytes), 0) AS BIGINT) AS saves_objects_bytes,
    CAST(coalesce(sum(saves_transpose_bytes), 0) AS BIGINT) AS saves_transpose_bytes,
    CAST(coalesce(sum(saves_xarray_bytes), 0) AS BIGINT) AS saves_xarray_bytes
FROM host_waste_at($run)
JOIN (SELECT run_id, target, memory_bytes FROM targets) USING (run_id, target)
JOIN machines_at($run) USING (target)
LEFT JOIN lazy_savings_at($run) USING (target);
