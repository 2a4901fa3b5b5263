-- How many bytes would a kernel upgrade free and take on each machine of a given run?
-- Of unreclaimable slab and per-CPU memory together, by the parts of memcg_memory that are predicted for target_kernel:
-- frees_bytes of the parts that would hold less, takes_bytes of those that would hold more. A machine for which
-- list_lru, shrinker_info, memcg_structs or memcg_percpu is not predicted has no row. net_bytes is a lower bound where
-- lower_bound is true, because upgraded_bytes of list_lru is an upper bound there. Where lazy_basis is sampled,
-- lazy_error_bytes is a part of the error of net_bytes.
CREATE MACRO upgrade_net_at(run) AS TABLE
SELECT * EXCLUDE (run_id)
FROM _upgrade_nets
WHERE run_id = run
ORDER BY net_bytes DESC, target;
