-- Which kernels of a given run waste most?
-- lazy is true if no machine with that kernel has an estimate, because there is nothing to save.
CREATE MACRO kernel_waste_at(run) AS TABLE
SELECT
    kernel_release,
    layout,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes,
    bool_and(lazy_basis IS NULL) AS lazy,
    bool_or(lower_bound) AS lower_bound
FROM host_waste_at(run)
GROUP BY kernel_release, layout
ORDER BY wasted_bytes DESC, kernel_release, layout;
