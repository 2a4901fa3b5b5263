-- What grew or shrank on each machine between one ok snapshot of an audit and the next?
-- Snapshots with different model_version or lazy_target are not comparable, nor is a lower bound (lazy_basis `online`)
-- with an expected figure (`charged`, `sampled`): their deltas are null. A lazy kernel has no estimate, so a pair
-- across an upgrade to one is comparable. A machine rebooted if its two intervals from boot to snapshot do not
-- overlap. Setting the clock moves booted_at too, but not that far. The deltas of consecutive snapshots add up to the
-- growth over the whole time. Snapshots follow one another as their runs do (runs.sequence), whatever the machine's
-- clock said: to_captured_at is before from_captured_at if it was set back.
CREATE VIEW growth AS
WITH pairs AS (
    SELECT
        s.*,
        lag(s) OVER (PARTITION BY s.audit, s.target ORDER BY s.position) AS from_snapshot
    FROM _snapshots AS s
),

comparisons AS (
    SELECT
        *,
        model_version = from_snapshot.model_version
        AND (
            lazy_basis IS NULL
            OR from_snapshot.lazy_basis IS NULL
            OR _is_lower_bound(lazy_basis) = _is_lower_bound(from_snapshot.lazy_basis)
        )
        AND coalesce(lazy_target = from_snapshot.lazy_target, true) AS comparable
    FROM pairs
    WHERE from_snapshot.run_id IS NOT NULL
)

SELECT
    audit,
    target,
    from_snapshot.run_id AS from_run_id,
    run_id AS to_run_id,
    from_snapshot.captured_at AS from_captured_at,
    captured_at AS to_captured_at,
    from_snapshot.kernel_release AS from_kernel_release,
    kernel_release AS to_kernel_release,
    booted_at > from_snapshot.captured_at OR captured_at < from_snapshot.booted_at AS rebooted,
    comparable,
    CASE WHEN comparable THEN memcg_nr_cache_ids - from_snapshot.memcg_nr_cache_ids END AS memcg_nr_cache_ids_delta,
    CASE WHEN comparable THEN superblocks - from_snapshot.superblocks END AS superblocks_delta,
    CASE WHEN comparable THEN online_memcgs - from_snapshot.online_memcgs END AS online_memcgs_delta,
    CASE WHEN comparable THEN list_lru_bytes - from_snapshot.list_lru_bytes END AS list_lru_bytes_delta,
    CASE WHEN comparable THEN wasted_bytes - from_snapshot.wasted_bytes END AS wasted_bytes_delta,
    from_snapshot.uptime_s AS from_uptime_s,
    uptime_s AS to_uptime_s,
    from_snapshot.layout AS from_layout,
    layout AS to_layout,
    from_snapshot.lazy_basis AS from_lazy_basis,
    lazy_basis AS to_lazy_basis,
    from_snapshot.list_lru_bytes AS from_list_lru_bytes,
    list_lru_bytes AS to_list_lru_bytes,
    from_snapshot.wasted_bytes AS from_wasted_bytes,
    wasted_bytes AS to_wasted_bytes,
    from_snapshot.slab_unreclaimable_bytes AS from_slab_unreclaimable_bytes,
    slab_unreclaimable_bytes AS to_slab_unreclaimable_bytes,
    from_snapshot.percpu_bytes AS from_percpu_bytes,
    percpu_bytes AS to_percpu_bytes,
    from_snapshot.target_kernel AS from_target_kernel,
    from_snapshot.net_bytes AS from_net_bytes
FROM comparisons
ORDER BY audit, target, position;
