-- Which superblocks does each target have?
-- Addresses are in hexadecimal, as the kernel prints them.
CREATE VIEW superblocks AS
SELECT * REPLACE (printf('0x%x', address) AS address)
FROM _stored_superblocks;
