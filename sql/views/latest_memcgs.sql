-- Which memory cgroups did the newest run of each audit find?
CREATE VIEW latest_memcgs AS
SELECT memcgs.*
FROM memcgs
SEMI JOIN latest_runs USING (run_id);
