-- Which five cgroups have the children that waste most on each given machine of a run?
SELECT
    w.*,
    _is_lower_bound(t.lazy_basis) AS lower_bound
FROM cgroup_waste_at($run) AS w
JOIN (SELECT target, lazy_basis FROM targets WHERE run_id = $run) AS t USING (target)
WHERE list_contains($targets, target) AND parent IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY target ORDER BY wasted_bytes DESC, path) <= 5
ORDER BY target, wasted_bytes DESC, path;
