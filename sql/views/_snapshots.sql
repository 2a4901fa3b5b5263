-- What does each ok target hold and waste in each run that no other run revises?
-- The sums are stored with the target. Runs of schema version 2 and older have none: their list_lrus are summed here.
CREATE VIEW _snapshots AS
WITH targets_without_sums AS (
    SELECT
        run_id,
        target
    FROM targets
    WHERE status = 'ok' AND list_lru_bytes IS NULL
),

list_lru_sums AS (
    SELECT
        run_id,
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes
    FROM _sized_list_lrus
    SEMI JOIN targets_without_sums USING (run_id, target)
    GROUP BY run_id, target
)

SELECT
    r.audit,
    t.target,
    t.run_id,
    r.started_at,
    r.position,
    t.captured_at,
    t.booted_at,
    t.uptime_s,
    t.kernel_release,
    t.layout,
    t.model_version,
    t.lazy_target,
    t.lazy_basis,
    t.memory_bytes,
    t.memcg_nr_cache_ids,
    t.superblocks,
    t.online_memcgs,
    t.slab_unreclaimable_bytes,
    t.percpu_bytes,
    n.target_kernel,
    n.net_bytes,
    coalesce(t.list_lru_bytes, s.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(t.lazy_bytes, s.lazy_bytes, 0) AS lazy_bytes,
    coalesce(t.list_lru_bytes - t.lazy_bytes, s.list_lru_bytes - s.lazy_bytes, 0) AS wasted_bytes
FROM targets AS t
JOIN _unrevised_runs AS r USING (run_id)
LEFT JOIN list_lru_sums AS s USING (run_id, target)
LEFT JOIN _upgrade_nets AS n USING (run_id, target)
WHERE t.status = 'ok';
