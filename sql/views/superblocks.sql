-- Which filesystem instances did each target have?
CREATE VIEW superblocks AS
SELECT * FROM stored_superblocks;
