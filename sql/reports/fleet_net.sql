-- How many bytes would the kernel upgrades of a run's machines free and take in all?
-- Each machine counts once; one without a row in upgrade_net is left out. The answer is one row, or none without any.
SELECT
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(n.frees_bytes) AS BIGINT) AS frees_bytes,
    CAST(sum(n.takes_bytes) AS BIGINT) AS takes_bytes,
    CAST(sum(n.net_bytes) AS BIGINT) AS net_bytes,
    bool_or(n.lower_bound) AS lower_bound,
    CAST(sum(n.lazy_error_bytes) AS BIGINT) AS lazy_error_bytes
FROM upgrade_net_at($run) AS n
SEMI JOIN _machines_at($run) USING (target)
HAVING count(*) > 0;
