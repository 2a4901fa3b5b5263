-- What do NUMA nodes that are possible but offline cost each machine of a given run?
-- An eager kernel allocates objects and arrays on every possible node. The firmware reports the possible nodes, often
-- too many. Where one array serves all nodes (`mlrus`), only the objects are counted.
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

list_lru_sums AS (
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
    JOIN _sized_list_lrus AS l ON l.run_id = run AND h.target = l.target
    GROUP BY h.target
)

SELECT
    h.target,
    h.kernel_release,
    h.layout,
    h.possible_nodes,
    h.online_nodes,
    h.offline_nodes,
    coalesce(s.list_lru_bytes, 0) AS list_lru_bytes,
    coalesce(s.offline_node_bytes, 0) AS offline_node_bytes
FROM hosts AS h
LEFT JOIN list_lru_sums AS s USING (target)
ORDER BY offline_node_bytes DESC, h.target;
