-- Are there at most nr_node_ids possible nodes, and at least one?
SELECT target, format('{} possible nodes, but nr_node_ids is {}', len(possible_nodes), nr_node_ids) AS reason
FROM targets
WHERE
    status = 'ok'
    AND (nr_node_ids < 1 OR len(possible_nodes) NOT BETWEEN 1 AND nr_node_ids);
