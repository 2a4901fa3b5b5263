-- How did the bytes of an audit change from run to run?
-- A run that reads more hosts finds more waste, and hosts with a lower bound report less of it: compare hosts,
-- eager_hosts and lower_bound_hosts before the bytes. The rows of an audit are in the order of its runs, also where
-- started_at is by a clock that was wrong.
CREATE VIEW fleet_history AS
WITH run_sums AS (
    SELECT
        run_id,
        CAST(count(*) AS BIGINT) AS hosts,
        CAST(count(lazy_basis) AS BIGINT) AS eager_hosts,
        CAST(count(*) FILTER (_is_lower_bound(lazy_basis)) AS BIGINT) AS lower_bound_hosts,
        CAST(sum(memory_bytes) AS BIGINT) AS memory_bytes,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM _snapshots
    GROUP BY run_id
)

SELECT
    r.audit,
    r.run_id,
    r.started_at,
    r.targets,
    coalesce(run_sums.hosts, 0) AS hosts,
    coalesce(run_sums.eager_hosts, 0) AS eager_hosts,
    coalesce(run_sums.lower_bound_hosts, 0) AS lower_bound_hosts,
    coalesce(run_sums.memory_bytes, 0) AS memory_bytes,
    coalesce(run_sums.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(run_sums.lazy_bytes, 0) AS lazy_bytes,
    coalesce(run_sums.wasted_bytes, 0) AS wasted_bytes,
    round(100.0 * run_sums.wasted_bytes / nullif(run_sums.memory_bytes, 0), 2) AS wasted_pct_of_memory
FROM _unrevised_runs AS r
LEFT JOIN run_sums USING (run_id)
ORDER BY r.audit, r.position;
