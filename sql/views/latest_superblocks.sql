-- Which filesystem instances did the newest run of each audit find?
CREATE VIEW latest_superblocks AS
SELECT superblocks.*
FROM superblocks
SEMI JOIN latest_runs USING (run_id);
