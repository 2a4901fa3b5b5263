-- Did a kernel upgrade free as many bytes as predicted?
-- predicted_saves_bytes is the waste of the last snapshot before a lazy kernel, and 0 if the new kernel is eager too.
-- freed_bytes is measured: list_lru_bytes before, less list_lru_bytes after. Compare the two uptimes and the deltas
-- before the bytes: soon after a boot an eager kernel has few ids too.
-- predicted_net_bytes is net_bytes of upgrade_net before the upgrade, predicted for predicted_kernel, which need not be
-- the kernel that came. totals_freed_bytes is measured by the kernels' own totals, with all else that they count.
CREATE VIEW upgrades AS
WITH kernel_changes AS (
    SELECT
        *,
        CASE WHEN to_lazy_basis IS NULL THEN from_wasted_bytes ELSE 0 END AS predicted_saves_bytes,
        -list_lru_bytes_delta AS freed_bytes,
        CASE WHEN to_lazy_basis IS NULL THEN from_target_kernel END AS predicted_kernel,
        CASE WHEN to_lazy_basis IS NULL THEN from_net_bytes END AS predicted_net_bytes,
        to_lazy_basis IS NULL AND _is_lower_bound(from_lazy_basis) AS lower_bound,
        from_slab_unreclaimable_bytes + from_percpu_bytes - to_slab_unreclaimable_bytes - to_percpu_bytes
            AS totals_freed_bytes
    FROM growth
    WHERE from_kernel_release <> to_kernel_release
)

SELECT
    kernel_changes.audit,
    target,
    from_run_id,
    to_run_id,
    from_captured_at,
    to_captured_at,
    from_kernel_release,
    to_kernel_release,
    rebooted,
    comparable,
    predicted_saves_bytes,
    freed_bytes,
    round(100.0 * freed_bytes / nullif(predicted_saves_bytes, 0), 2) AS pct_of_predicted,
    from_uptime_s,
    to_uptime_s,
    memcg_nr_cache_ids_delta,
    superblocks_delta,
    online_memcgs_delta,
    list_lru_bytes_delta,
    wasted_bytes_delta,
    from_layout,
    to_layout,
    predicted_kernel,
    predicted_net_bytes,
    totals_freed_bytes,
    round(100.0 * totals_freed_bytes / nullif(predicted_net_bytes, 0), 2) AS pct_of_net,
    lower_bound
FROM kernel_changes
JOIN _ordered_runs AS o ON to_run_id = o.run_id
ORDER BY kernel_changes.audit, target, o.position;
