-- Under which cgroups were the ids made that each machine of the newest run pays for, and who makes more of them?
CREATE VIEW cgroup_waste AS
SELECT * FROM cgroup_waste_at(newest_run_id());
