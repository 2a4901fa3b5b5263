-- Which kernels waste most in the newest run, over all the machines that run them?
CREATE VIEW kernel_waste AS
SELECT * FROM kernel_waste_at(newest_run_id());
