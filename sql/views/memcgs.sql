-- Which memory cgroups does each target have?
CREATE VIEW memcgs AS
SELECT * FROM _stored_memcgs;
