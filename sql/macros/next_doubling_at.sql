-- How near is each eager machine in a given run to the next growth of its ids, and what will that cost?
-- memcg_alloc_cache_id() gives the lowest free id; without one memcg_nr_cache_ids becomes 2 * (ids + 1), at most 65535,
-- and every list_lru gets longer arrays and an object for each new id on each node, for good. next_bytes is null at the
-- last size, and where a machine has no ids yet, whose object could not be measured.
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
    id_bytes * (next_cache_ids - memcg_nr_cache_ids) AS next_object_bytes,
    CASE
        WHEN next_cache_ids IS NOT NULL
            THEN arrays * pointer_array_alloc_bytes(next_cache_ids, layout, arch) - pointer_array_bytes
    END AS next_array_bytes,
    next_object_bytes + next_array_bytes AS next_bytes
FROM eager_ids_at(run)
ORDER BY ids_left, target;
