-- Which lazy kernels do machines of a run have, and how many machines have each?
SELECT
    t.kernel_release,
    CAST(count(*) AS BIGINT) AS hosts
FROM targets AS t
JOIN _machines_at($run) AS m USING (target)
WHERE t.run_id = $run AND m.lazy_basis IS NULL
GROUP BY t.kernel_release
ORDER BY hosts DESC, t.kernel_release;
