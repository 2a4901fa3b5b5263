-- How much would a reboot free on each eager machine of a given run?
-- After a reboot memcg_nr_cache_ids grows again to booted_cache_ids, the first of its sizes with an id for every memcg
-- that is online now. The superblocks are taken to be the same. The saving lasts until the ids are used up again;
-- wasted_bytes, which the lazy kernel would free, is saved for good.
CREATE MACRO reboot_savings_at(run) AS TABLE
SELECT
    target,
    kernel_release,
    uptime_s,
    memcg_nr_cache_ids,
    online_ids,
    CAST(
        list_min(
            list_filter(
                [4, 10, 22, 46, 94, 190, 382, 766, 1534, 3070, 6142, 12286, 24574, 49150, 65535],
                lambda ids: ids >= online_ids
            )
        ) AS BIGINT
    ) AS booted_cache_ids,
    coalesce(
        CASE
            WHEN memcg_nr_cache_ids > booted_cache_ids
                THEN
                    id_bytes * (memcg_nr_cache_ids - booted_cache_ids)
                    + pointer_array_bytes
                    - arrays * _pointer_array_alloc_bytes(booted_cache_ids, layout, arch)
        END,
        0
    ) AS reboot_saves_bytes,
    wasted_bytes
FROM _eager_ids_at(run)
ORDER BY reboot_saves_bytes DESC, target;
