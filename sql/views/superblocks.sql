-- Which superblocks does each target have?
-- Addresses are in hexadecimal, as the kernel prints them. The stored sums are in superblock_waste: here a join with
-- list_lrus would make their names ambiguous.
CREATE VIEW superblocks AS
SELECT * EXCLUDE (list_lrus, list_lru_bytes, lazy_bytes) REPLACE (printf('0x%x', address) AS address)
FROM _stored_superblocks;
