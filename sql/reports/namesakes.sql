-- Which host names of a run do several machines have, and in what do these differ?
-- memory_bytes has each size once, the largest first.
WITH boots AS (
    SELECT
        m.host_name,
        t.booted_at < max(t.captured_at - INTERVAL 1 MINUTE) OVER (
            PARTITION BY m.host_name
            ORDER BY t.booted_at, t.target
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS was_up_with_another
    FROM _boot_machines_at($run) AS m
    JOIN targets AS t ON t.run_id = $run AND m.target = t.target
    WHERE m.target = m.boot_target AND t.booted_at < t.captured_at - INTERVAL 1 MINUTE
),

simultaneous AS (
    SELECT host_name, bool_or(was_up_with_another) AS up_at_the_same_time
    FROM boots
    GROUP BY host_name
),

host_names AS (
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
        count(DISTINCT t.machine_id) > 1 AS differ_in_machine_id,
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
    differ_in_machine_id,
    differ_in_labels,
    coalesce(up_at_the_same_time, false) AS up_at_the_same_time
FROM host_names
LEFT JOIN simultaneous USING (host_name)
WHERE machines > 1
ORDER BY machines DESC, host_name;
