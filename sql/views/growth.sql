-- What grew or shrank on each machine from one ok snapshot of an audit to the next?
-- Estimates of another model_version, lazy_basis or lazy_target are not compared: comparable is false and every delta
-- null. On a lazy kernel nothing is estimated, so that a pair across an upgrade compares. It rebooted in between when
-- the times from boot to snapshot do not overlap; a clock that was set meanwhile moves booted_at, but not that far.
-- Deltas of consecutive snapshots add up: their sum is the growth since any of them.
CREATE VIEW growth AS
WITH pairs AS (
    SELECT
        s.*,
        lag(s) OVER (PARTITION BY s.audit, s.target ORDER BY s.started_at, s.run_id) AS earlier
    FROM snapshots AS s
),

compared AS (
    SELECT
        *,
        model_version = earlier.model_version
        AND coalesce(lazy_basis = earlier.lazy_basis, true)
        AND coalesce(lazy_target = earlier.lazy_target, true) AS comparable
    FROM pairs
    WHERE earlier.run_id IS NOT NULL
)

SELECT
    audit,
    target,
    earlier.run_id AS from_run_id,
    run_id AS to_run_id,
    earlier.captured_at AS from_captured_at,
    captured_at AS to_captured_at,
    earlier.kernel_release AS from_kernel_release,
    kernel_release AS to_kernel_release,
    booted_at > earlier.captured_at OR captured_at < earlier.booted_at AS rebooted,
    comparable,
    CASE WHEN comparable THEN memcg_nr_cache_ids - earlier.memcg_nr_cache_ids END AS memcg_nr_cache_ids_delta,
    CASE WHEN comparable THEN superblocks - earlier.superblocks END AS superblocks_delta,
    CASE WHEN comparable THEN online_memcgs - earlier.online_memcgs END AS online_memcgs_delta,
    CASE WHEN comparable THEN list_lru_bytes - earlier.list_lru_bytes END AS list_lru_bytes_delta,
    CASE WHEN comparable THEN wasted_bytes - earlier.wasted_bytes END AS wasted_bytes_delta,
    earlier.uptime_s AS from_uptime_s,
    uptime_s AS to_uptime_s,
    earlier.layout AS from_layout,
    layout AS to_layout,
    earlier.lazy_basis AS from_lazy_basis,
    lazy_basis AS to_lazy_basis,
    earlier.list_lru_bytes AS from_list_lru_bytes,
    list_lru_bytes AS to_list_lru_bytes,
    earlier.wasted_bytes AS from_wasted_bytes,
    wasted_bytes AS to_wasted_bytes
FROM compared
ORDER BY audit, target, started_at, to_run_id;
