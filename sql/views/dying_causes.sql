-- What keeps the removed memory cgroups of each machine of the newest run, and which files most?
CREATE VIEW dying_causes AS
SELECT * FROM dying_causes_at(newest_run_id());
