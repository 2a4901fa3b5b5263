-- Which filesystem instances did each target have?
-- Addresses are shown as the kernel prints them.
CREATE VIEW superblocks AS
SELECT * REPLACE (printf('0x%x', address) AS address)
FROM stored_superblocks;
