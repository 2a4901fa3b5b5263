-- What does each part of what memory cgroups cost hold on each target?
CREATE VIEW memcg_memory AS
SELECT * FROM _stored_memcg_memory;
