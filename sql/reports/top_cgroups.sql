-- Which five cgroups have the children that waste most on each given machine of a run?
FROM cgroup_waste_at($run)
WHERE list_contains($targets, target) AND parent IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY target ORDER BY wasted_bytes DESC, path) <= 5
ORDER BY target, wasted_bytes DESC, path;
