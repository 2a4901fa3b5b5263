-- Are the possible nodes some of the nodes there are?
SELECT target, format('{} possible of {} nodes', len(possible_nodes), nr_node_ids) AS reason
FROM targets
WHERE
    status = 'ok'
    AND (nr_node_ids < 1 OR len(possible_nodes) NOT BETWEEN 1 AND nr_node_ids);
