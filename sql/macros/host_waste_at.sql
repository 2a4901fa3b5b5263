-- Which machines of a given run waste most?
-- A lower bound below 0 says nothing: it ranks as 0.
CREATE MACRO host_waste_at(run) AS TABLE
WITH hosts AS (
    SELECT
        *,
        list_lru_bytes - lazy_bytes AS wasted_bytes,
        _is_lower_bound(lazy_basis) AS lower_bound
    FROM _summed_targets_at(run)
)

SELECT
    rank() OVER (ORDER BY CASE WHEN lower_bound THEN greatest(wasted_bytes, 0) ELSE wasted_bytes END DESC) AS rank,
    run_id,
    target,
    host,
    kernel_release,
    layout,
    memcg_nr_cache_ids,
    nr_node_ids,
    superblocks,
    list_lrus,
    online_memcgs,
    list_lru_bytes,
    -- The commit message's formula: 2 list_lrus for each superblock, 32 bytes for each node and id, no arrays.
    CAST(2 * superblocks * len(possible_nodes) * memcg_nr_cache_ids * 32 AS BIGINT) AS formula_bytes,
    lazy_low_bytes,
    lazy_bytes,
    lazy_high_bytes,
    lazy_basis,
    wasted_bytes,
    round(100.0 * wasted_bytes / nullif(memory_bytes, 0), 2) AS wasted_pct_of_memory,
    lower_bound,
    lazy_error_bytes
FROM hosts
ORDER BY rank, target;
