-- Is a failed target without numbers?
SELECT target, format('status {} with numbers', status) AS reason
FROM targets
WHERE
    status NOT IN ('ok', 'unsupported')
    AND coalesce(superblocks, list_lrus, online_memcgs, memcg_nr_cache_ids) IS NOT NULL;
