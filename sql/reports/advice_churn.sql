-- Under which cgroup of a run's machines do most cgroups come and go?
-- dir_rev counts the changes of a cgroup's directory, since Linux 5.15; before that the dying and the last made tell.
SELECT
    target,
    path,
    online_children,
    dying_children,
    dir_rev
FROM cgroup_waste_at($run)
SEMI JOIN (FROM machines_at($run) WHERE lazy_basis IS NOT NULL) USING (target)
WHERE path IS NOT NULL
ORDER BY dir_rev DESC NULLS LAST, dying_children DESC, last_serial_nr DESC NULLS LAST, target, path
LIMIT 1;
