-- Which machines of the newest run waste most?
CREATE VIEW host_waste AS
SELECT * FROM host_waste_at(newest_run_id());
