-- What does each machine in a given run pay for NUMA nodes that are possible, but not there?
-- An eager kernel allocates objects and arrays on every possible node; the firmware says how many those are, and often
-- says too many. Where one array serves all nodes (`mlrus`) only the objects are counted.
CREATE MACRO offline_nodes_at(run) AS TABLE
WITH hosts AS (
    SELECT
        target,
        kernel_release,
        layout,
        possible_nodes,
        online_nodes,
        CAST(len(list_filter(possible_nodes, lambda node: NOT list_contains(online_nodes, node))) AS BIGINT)
            AS offline_nodes
    FROM targets
    WHERE run_id = run AND status = 'ok' AND lazy_basis IS NOT NULL
),

held AS (
    SELECT
        h.target,
        CAST(
            sum(
                (l.list_lru_one_bytes + CASE WHEN l.nodes > 1 THEN l.pointer_array_bytes ELSE 0 END)
                * h.offline_nodes
                // len(h.possible_nodes)
            ) AS BIGINT
        ) AS offline_node_bytes,
        CAST(sum(l.list_lru_bytes) AS BIGINT) AS list_lru_bytes
    FROM hosts AS h
    JOIN sized_list_lrus AS l ON l.run_id = run AND h.target = l.target
    GROUP BY h.target
)

SELECT
    h.target,
    h.kernel_release,
    h.layout,
    h.possible_nodes,
    h.online_nodes,
    h.offline_nodes,
    coalesce(held.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(held.offline_node_bytes, 0) AS offline_node_bytes
FROM hosts AS h
LEFT JOIN held USING (target)
ORDER BY offline_node_bytes DESC, h.target;
