-- Which kernels waste most in a given run, over all the machines that run them?
-- A kernel is lazy where it has nothing to save: there is no basis for an estimate.
CREATE MACRO kernel_waste_at(run) AS TABLE
SELECT
    kernel_release,
    layout,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes,
    bool_and(lazy_basis IS NULL) AS lazy
FROM host_waste_at(run)
GROUP BY kernel_release, layout
ORDER BY wasted_bytes DESC, kernel_release, layout;
