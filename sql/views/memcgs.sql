-- Which memory cgroups did each target have?
CREATE VIEW memcgs AS
SELECT * FROM stored_memcgs;
