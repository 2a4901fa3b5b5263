-- Which machines waste most in the newest run?
CREATE VIEW host_waste AS
SELECT * FROM host_waste_at((SELECT run_id FROM newest_run));
