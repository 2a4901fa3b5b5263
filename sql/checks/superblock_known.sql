-- Does every list_lru of a superblock name one that is there, and no other list_lru any?
WITH known AS (
    SELECT run_id, target, address AS superblock
    FROM stored_superblocks
)

SELECT target, format('list_lru 0x{:x} names superblock 0x{:x}, which is not there', address, superblock) AS reason
FROM sized_list_lrus
ANTI JOIN known USING (run_id, target, superblock)
WHERE superblock IS NOT NULL
UNION ALL
SELECT
    target,
    format(
        'list_lru 0x{:x} is owned by a {} and names superblock {}',
        address,
        owner,
        coalesce(printf('0x%x', superblock), 'none')
    ) AS reason
FROM sized_list_lrus
WHERE (owner = 'superblock') <> (superblock IS NOT NULL);
