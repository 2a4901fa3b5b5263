-- How much do the targets with each label, such as a rack or a role, waste in the newest run?
CREATE VIEW label_waste AS
SELECT * FROM label_waste_at(newest_run_id());
