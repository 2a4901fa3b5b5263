-- Which machines waste most in a given run?
CREATE MACRO host_waste_at(run) AS TABLE
WITH per_target AS (
    SELECT
        target,
        CAST(sum(list_lru_bytes) AS BIGINT) AS list_lru_bytes,
        CAST(sum(lazy_low_bytes) AS BIGINT) AS lazy_low_bytes,
        CAST(sum(lazy_bytes) AS BIGINT) AS lazy_bytes,
        CAST(sum(lazy_high_bytes) AS BIGINT) AS lazy_high_bytes,
        CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes
    FROM sized_list_lrus
    WHERE run_id = run
    GROUP BY target
),

counted AS (
    SELECT
        targets.*,
        coalesce(per_target.list_lru_bytes, 0) AS list_lru_bytes,
        coalesce(per_target.lazy_low_bytes, 0) AS lazy_low_bytes,
        coalesce(per_target.lazy_bytes, 0) AS lazy_bytes,
        coalesce(per_target.lazy_high_bytes, 0) AS lazy_high_bytes,
        coalesce(per_target.wasted_bytes, 0) AS wasted_bytes
    FROM targets
    LEFT JOIN per_target USING (target)
    WHERE targets.run_id = run AND targets.status = 'ok'
)

SELECT
    rank() OVER (ORDER BY wasted_bytes DESC) AS rank,
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
    -- The commit message's own: two list_lrus a superblock, 32 bytes for every node and id, no arrays.
    CAST(2 * superblocks * len(possible_nodes) * memcg_nr_cache_ids * 32 AS BIGINT) AS formula_bytes,
    lazy_low_bytes,
    lazy_bytes,
    lazy_high_bytes,
    lazy_basis,
    wasted_bytes,
    round(100.0 * wasted_bytes / nullif(memory_bytes, 0), 2) AS wasted_pct_of_memory
FROM counted
ORDER BY rank, target;
