-- In which racks, roles or other labels is the waste of the newest run?
CREATE VIEW label_waste AS
SELECT * FROM label_waste_at(newest_run_id());
