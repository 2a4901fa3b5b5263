-- Which filesystem types make up the waste of each machine of the newest run?
CREATE VIEW fstype_waste AS
SELECT * FROM fstype_waste_at(newest_run_id());
