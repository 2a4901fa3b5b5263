-- Which kernel does each target have, and how did its collection end, in the newest run of each audit?
CREATE VIEW latest_targets AS
SELECT targets.*
FROM targets
SEMI JOIN latest_runs USING (run_id);
