-- Below which cgroup do most cgroups come and go, on the machine of a run whose dead ids waste most?
-- dir_rev counts the changes of a cgroup's directory since commit 895adbec302e ("kernfs: add a revision to identify
-- directory node changes") (in v5.15). On older kernels only dying children show churn.
WITH worst_machine AS (
    SELECT target
    FROM id_bloat_at($run)
    SEMI JOIN _machines_at($run) USING (target)
    WHERE dead_ids_bytes > 0
    ORDER BY dead_ids_bytes DESC, target
    LIMIT 1
)

SELECT
    target,
    path,
    online_children,
    dying_children,
    dir_rev
FROM cgroup_waste_at($run)
SEMI JOIN worst_machine USING (target)
WHERE path IS NOT NULL AND (dir_rev > 0 OR dying_children > 0)
ORDER BY dir_rev DESC NULLS LAST, dying_children DESC, last_serial_nr DESC NULLS LAST, path
LIMIT 1;
