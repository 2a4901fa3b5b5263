-- How did each attempt to collect a target end, in the newest run of each audit?
CREATE VIEW latest_attempts AS
SELECT attempts.*
FROM attempts
SEMI JOIN latest_runs USING (run_id);
