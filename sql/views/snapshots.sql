-- What did every run that counts find on each machine that it could read? (For views over time.)
-- The sums are kept with the target; those of runs of schema version 2 and older are made here.
CREATE VIEW snapshots AS
WITH unsummed AS (
    SELECT
        run_id,
        target
    FROM targets
    WHERE status = 'ok' AND list_lru_bytes IS NULL
),

held AS (
    SELECT
        run_id,
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes
    FROM sized_list_lrus
    SEMI JOIN unsummed USING (run_id, target)
    GROUP BY run_id, target
)

SELECT
    r.audit,
    t.target,
    t.run_id,
    r.started_at,
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
    coalesce(t.list_lru_bytes, held.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(t.lazy_bytes, held.lazy_bytes, 0) AS lazy_bytes,
    coalesce(t.list_lru_bytes - t.lazy_bytes, held.list_lru_bytes - held.lazy_bytes, 0) AS wasted_bytes
FROM targets AS t
JOIN unrevised_runs AS r USING (run_id)
LEFT JOIN held USING (run_id, target)
WHERE t.status = 'ok';
