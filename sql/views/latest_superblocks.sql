-- Which superblocks does each target have in the newest run of each audit?
CREATE VIEW latest_superblocks AS
SELECT superblocks.*
FROM superblocks
SEMI JOIN latest_runs USING (run_id);
