-- How much do the children of each cgroup waste on each machine of the newest run?
CREATE VIEW cgroup_waste AS
SELECT * FROM cgroup_waste_at(newest_run_id());
