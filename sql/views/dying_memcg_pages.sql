-- Which pages, of which files, are charged to dying memory cgroups on each target?
-- Addresses are in hexadecimal, as in superblocks.
CREATE VIEW dying_memcg_pages AS
SELECT * REPLACE (printf('0x%x', superblock) AS superblock)
FROM _stored_dying_memcg_pages;
