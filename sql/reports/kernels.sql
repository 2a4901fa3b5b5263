-- What would each kernel of a run give back, and which of them are lazy already?
-- A kernel is lazy where it has nothing to save: there is no basis for an estimate.
SELECT
    kernel_release,
    layout,
    count(*) FILTER (lazy_basis IS NULL) = count(*) AS lazy,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
    CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
FROM host_waste_at($run)
GROUP BY kernel_release, layout
ORDER BY wasted_bytes DESC, kernel_release, layout;
