-- Does the waste of a fleet rise or fall from run to run of its audit?
-- More hosts read is more waste found, and so are fewer whose waste is a lower bound: hosts, eager_hosts and
-- lower_bound_hosts say of how many the bytes are.
CREATE VIEW fleet_history AS
WITH summed AS (
    SELECT
        run_id,
        CAST(count(*) AS BIGINT) AS hosts,
        CAST(count(lazy_basis) AS BIGINT) AS eager_hosts,
        CAST(count(*) FILTER (lazy_basis = 'online') AS BIGINT) AS lower_bound_hosts,
        CAST(sum(memory_bytes) AS BIGINT) AS memory_bytes,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM snapshots
    GROUP BY run_id
)

SELECT
    r.audit,
    r.run_id,
    r.started_at,
    r.targets,
    coalesce(summed.hosts, 0) AS hosts,
    coalesce(summed.eager_hosts, 0) AS eager_hosts,
    coalesce(summed.lower_bound_hosts, 0) AS lower_bound_hosts,
    coalesce(summed.memory_bytes, 0) AS memory_bytes,
    coalesce(summed.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(summed.lazy_bytes, 0) AS lazy_bytes,
    coalesce(summed.wasted_bytes, 0) AS wasted_bytes,
    round(100.0 * summed.wasted_bytes / nullif(summed.memory_bytes, 0), 2) AS wasted_pct_of_memory
FROM unrevised_runs AS r
LEFT JOIN summed USING (run_id)
ORDER BY r.audit, r.started_at, r.run_id;
