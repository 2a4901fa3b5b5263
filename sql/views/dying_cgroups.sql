-- How many removed memory cgroups does each machine of the newest run keep, and below which cgroup are most of them?
CREATE VIEW dying_cgroups AS
SELECT * FROM dying_cgroups_at(newest_run_id());
