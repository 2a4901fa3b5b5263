-- Do every list_lru of a superblock and every file of dying memcgs refer to the row of a superblock, and every other
-- list_lru to none?
WITH superblock_keys AS (
    SELECT run_id, target, address AS superblock
    FROM _stored_superblocks
)

SELECT target, format('list_lru 0x{:x} names superblock 0x{:x}, which has no row', address, superblock) AS reason
FROM _sized_list_lrus
ANTI JOIN superblock_keys USING (run_id, target, superblock)
WHERE superblock IS NOT NULL
UNION ALL
SELECT target, format('a file of dying memcgs is on superblock 0x{:x}, which has no row', superblock) AS reason
FROM _stored_dying_memcg_pages
ANTI JOIN superblock_keys USING (run_id, target, superblock)
WHERE superblock IS NOT NULL
UNION ALL
SELECT
    target,
    format(
        'list_lru 0x{:x} has owner {} and superblock {}',
        address,
        owner,
        coalesce(printf('0x%x', superblock), 'none')
    ) AS reason
FROM _sized_list_lrus
WHERE (owner = 'superblock') <> (superblock IS NOT NULL);
