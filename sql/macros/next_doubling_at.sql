-- How many ids are left before the arrays of each eager machine of a given run grow, and at what cost?
-- memcg_alloc_cache_id() takes the lowest free id. Without one, memcg_nr_cache_ids becomes 2 * (ids + 1), at most
-- 65535. Every list_lru then gets longer arrays and, for each new id, an object on each node, and never gives them
-- back. Where this was under way (targets.growing_to_cache_ids), next_bytes is what was still to come. It is null at
-- the last size, and on a machine without ids, which has no object to measure.
CREATE MACRO next_doubling_at(run) AS TABLE
SELECT
    target,
    kernel_release,
    memcg_nr_cache_ids,
    online_ids,
    dead_ids AS ids_left,
    CASE
        WHEN memcg_nr_cache_ids < 65535 THEN least(greatest(2 * (memcg_nr_cache_ids + 1), 4), 65535)
    END AS next_cache_ids,
    id_bytes * next_cache_ids - object_bytes AS next_object_bytes,
    CASE
        WHEN next_cache_ids IS NOT NULL
            THEN arrays * _pointer_array_alloc_bytes(next_cache_ids, layout, arch) - pointer_array_bytes
    END AS next_array_bytes,
    next_object_bytes + next_array_bytes AS next_bytes
FROM _eager_ids_at(run)
ORDER BY ids_left, target;
