-- Which kernels of the newest run are lazy already, backports included, and what do they save?
CREATE VIEW lazy_kernels AS
SELECT * FROM lazy_kernels_at((SELECT run_id FROM newest_run));
