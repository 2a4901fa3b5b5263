-- Which kernels of the newest run waste most?
CREATE VIEW kernel_waste AS
SELECT * FROM kernel_waste_at(newest_run_id());
