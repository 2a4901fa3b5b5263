-- Which machines waste most in the newest run?
CREATE VIEW host_waste AS
SELECT * FROM host_waste_at(newest_run_id());
