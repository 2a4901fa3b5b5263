-- Which kernels of a given run are lazy, and what do they save?
-- The layout decides, not the release: RHEL 9.1's 5.14 and UEK7 U1's 5.15 are lazy by backport. eager_bytes is what the
-- eager kernel would hold for the same work. eager_bytes and saved_bytes cover the list_lrus with a known eager_bytes.
CREATE MACRO lazy_kernels_at(run) AS TABLE
SELECT
    t.kernel_release,
    t.arch,
    t.layout,
    CAST(count(DISTINCT t.target) AS BIGINT) AS hosts,
    CAST(coalesce(sum(l.list_lru_bytes), 0) AS BIGINT) AS list_lru_bytes,
    CAST(sum(l.eager_bytes) AS BIGINT) AS eager_bytes,
    CAST(sum(l.eager_bytes - l.list_lru_bytes) AS BIGINT) AS saved_bytes
FROM targets AS t
LEFT JOIN _sized_list_lrus AS l ON l.run_id = run AND t.target = l.target
WHERE t.run_id = run AND t.status = 'ok' AND t.lazy_basis IS NULL
GROUP BY t.kernel_release, t.arch, t.layout
ORDER BY hosts DESC, t.kernel_release, t.arch, t.layout;
