-- Are the counts of every failed target null?
SELECT target, format('status is {}, but its counts are not null', status) AS reason
FROM targets
WHERE
    status NOT IN ('ok', 'unsupported')
    AND coalesce(superblocks, list_lrus, online_memcgs, memcg_nr_cache_ids) IS NOT NULL;
