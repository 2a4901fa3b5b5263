-- What keeps the removed memory cgroups of each machine of a given run, and which files most?
-- A row is a file, or all else of one cause, below one online cgroup. A cgroup goes with its last page: write the files
-- back and drop their page cache, and delete those of a tmpfs. From Linux v7.1 on pages keep no removed cgroup. Without
-- rows none is kept, or their pages were not counted.
CREATE MACRO dying_causes_at(run) AS TABLE
SELECT
    t.target,
    t.kernel_release,
    ancestor.path AS cgroup,
    p.kind AS cause,
    sb.fstype,
    sb.mountpoint,
    p.path AS file,
    p.deleted,
    p.inode,
    p.files,
    p.memcgs,
    p.bytes
FROM dying_memcg_pages AS p
JOIN targets AS t USING (run_id, target)
LEFT JOIN superblocks AS sb ON p.run_id = sb.run_id AND p.target = sb.target AND p.superblock = sb.address
LEFT JOIN memcgs AS ancestor
    ON p.run_id = ancestor.run_id AND p.target = ancestor.target AND p.parent = ancestor.css_id
WHERE p.run_id = run AND t.status = 'ok'
ORDER BY p.bytes DESC, t.target, cgroup, cause, file, p.inode;
