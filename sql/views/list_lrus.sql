-- What does each list_lru hold, and what would the lazy kernel hold?
-- Addresses are in hexadecimal, as the kernel prints them.
CREATE VIEW list_lrus AS
SELECT * REPLACE (printf('0x%x', address) AS address, printf('0x%x', superblock) AS superblock)
FROM _sized_list_lrus;
