-- What would the upgrade to its target_kernel free and take on each target of each run?
-- Of each part that is predicted. dying_page_cache is a count, not a cost. The parts that an upgrade may enlarge must
-- all be predicted: without one of them net_bytes would be too high, so the target has no row. Of what churn leaves,
-- percpu_left and memcg_slab_left, some kernels have no count.
CREATE VIEW _upgrade_nets AS
WITH parts AS (
    SELECT
        run_id,
        target,
        part,
        held_bytes - upgraded_bytes AS net_bytes
    FROM memcg_memory
    WHERE upgraded_bytes IS NOT NULL AND part <> 'dying_page_cache'
),

sums AS (
    SELECT
        run_id,
        target,
        CAST(sum(greatest(net_bytes, 0)) AS BIGINT) AS frees_bytes,
        CAST(sum(greatest(-net_bytes, 0)) AS BIGINT) AS takes_bytes,
        CAST(sum(net_bytes) AS BIGINT) AS net_bytes
    FROM parts
    GROUP BY run_id, target
    HAVING count(*) FILTER (part IN ('list_lru', 'shrinker_info', 'memcg_structs', 'memcg_percpu')) = 4
)

SELECT
    t.run_id,
    t.target,
    t.target_kernel,
    s.frees_bytes,
    s.takes_bytes,
    s.net_bytes,
    _is_lower_bound(t.lazy_basis) AS lower_bound,
    t.lazy_error_bytes
FROM targets AS t
JOIN sums AS s USING (run_id, target)
WHERE t.status = 'ok' AND t.target_kernel IS NOT NULL;
