-- Does every superblock, list_lru, memcg and part of memcg_memory of a target have one row?
-- The bytes of a duplicate would count twice.
SELECT target, format('{} {} has {} rows', name, key, row_count) AS reason
FROM (
    SELECT run_id, target, 'superblock' AS name, printf('0x%x', address) AS key, count(*) AS row_count
    FROM _stored_superblocks
    GROUP BY run_id, target, address
    HAVING count(*) > 1
    UNION ALL
    SELECT run_id, target, 'list_lru' AS name, printf('0x%x', address) AS key, count(*) AS row_count
    FROM _sized_list_lrus
    GROUP BY run_id, target, address
    HAVING count(*) > 1
    UNION ALL
    SELECT run_id, target, 'memcg' AS name, CAST(css_id AS VARCHAR) AS key, count(*) AS row_count
    FROM memcgs
    GROUP BY run_id, target, css_id
    HAVING count(*) > 1
    UNION ALL
    SELECT run_id, target, 'memcg_memory' AS name, part AS key, count(*) AS row_count
    FROM memcg_memory
    GROUP BY run_id, target, part
    HAVING count(*) > 1
);
