-- Which kernels did the newest run of each audit find, and how did each end?
CREATE VIEW latest_targets AS
SELECT targets.*
FROM targets
SEMI JOIN latest_runs USING (run_id);
