-- What does each part of what memory cgroups cost hold on each target, in the newest run of each audit?
CREATE VIEW latest_memcg_memory AS
SELECT memcg_memory.*
FROM memcg_memory
SEMI JOIN latest_runs USING (run_id);
