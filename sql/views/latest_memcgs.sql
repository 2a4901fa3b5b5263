-- Which memory cgroups does each target have in the newest run of each audit?
CREATE VIEW latest_memcgs AS
SELECT memcgs.*
FROM memcgs
SEMI JOIN latest_runs USING (run_id);
