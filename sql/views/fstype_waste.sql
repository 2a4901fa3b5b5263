-- How much does each filesystem type waste on each machine of the newest run?
CREATE VIEW fstype_waste AS
SELECT * FROM fstype_waste_at(newest_run_id());
