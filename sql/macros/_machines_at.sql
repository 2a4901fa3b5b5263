-- Which target of a given run stands for each machine, so that no machine counts twice?
CREATE MACRO _machines_at(run) AS TABLE
SELECT
    t.target,
    t.lazy_basis
FROM targets AS t
JOIN _boot_machines_at(run) AS m USING (target)
WHERE t.run_id = run AND m.target = m.machine_target;
