-- Which machines of the newest run keep memory cgroups that were removed, and under which cgroup were most made?
CREATE VIEW dying_cgroups AS
SELECT * FROM dying_cgroups_at(newest_run_id());
