-- Is every superblock, list_lru and memcg of a target there once? (A double would count its bytes twice.)
SELECT target, format('{} {} is there {} times', name, key, times) AS reason
FROM (
    SELECT run_id, target, 'superblock' AS name, printf('0x%x', address) AS key, count(*) AS times
    FROM stored_superblocks
    GROUP BY run_id, target, address
    HAVING count(*) > 1
    UNION ALL
    SELECT run_id, target, 'list_lru' AS name, printf('0x%x', address) AS key, count(*) AS times
    FROM sized_list_lrus
    GROUP BY run_id, target, address
    HAVING count(*) > 1
    UNION ALL
    SELECT run_id, target, 'memcg' AS name, CAST(css_id AS VARCHAR) AS key, count(*) AS times
    FROM memcgs
    GROUP BY run_id, target, css_id
    HAVING count(*) > 1
);
