-- Which kernels of the newest run are lazy, and what do they save?
CREATE VIEW lazy_kernels AS
SELECT * FROM lazy_kernels_at(newest_run_id());
