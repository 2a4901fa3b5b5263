-- Which list_lrus did each target have, what do they hold, and what would the lazy kernel hold?
-- Addresses are shown as the kernel prints them.
CREATE VIEW list_lrus AS
SELECT * REPLACE (printf('0x%x', address) AS address, printf('0x%x', superblock) AS superblock)
FROM sized_list_lrus;
