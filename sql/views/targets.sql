-- Which kernels were audited in each run, what are they, and how did each end?
CREATE VIEW targets AS
SELECT * FROM stored_targets;
