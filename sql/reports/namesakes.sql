-- Which host names of a run do several machines have, and in what do these differ?
-- memory_bytes has each size once, the largest first. Without a difference they were up at the same time.
WITH host_names AS (
    SELECT
        m.host_name,
        count(*) AS targets,
        count(*) FILTER (m.target = m.machine_target) AS machines,
        bool_and(m.is_core) AS cores_only,
        list_reverse_sort(list(DISTINCT t.memory_bytes)) AS memory_bytes,
        8 * max(t.memory_bytes) > 9 * min(t.memory_bytes) AS differ_in_memory,
        count(DISTINCT t.arch) > 1 AS differ_in_architecture,
        count(DISTINCT t.page_bytes) > 1 AS differ_in_page_size,
        count(DISTINCT t.possible_nodes) > 1 AS differ_in_nodes,
        count(DISTINCT m.label_group) > 1 AS differ_in_labels
    FROM _boot_machines_at($run) AS m
    JOIN targets AS t ON t.run_id = $run AND m.target = t.target
    WHERE m.host_name IS NOT NULL
    GROUP BY m.host_name
)

SELECT
    host_name,
    CAST(targets AS BIGINT) AS targets,
    CAST(machines AS BIGINT) AS machines,
    cores_only,
    memory_bytes,
    differ_in_memory,
    differ_in_architecture,
    differ_in_page_size,
    differ_in_nodes,
    differ_in_labels
FROM host_names
WHERE machines > 1
ORDER BY machines DESC, host_name;
