-- Does every ok target have the facts from which its bytes are computed?
SELECT
    target,
    'status is ok, but memory, nodes, memcgs, superblocks, list_lrus, layout or model_version is null' AS reason
FROM targets
WHERE
    status = 'ok'
    AND (
        memory_bytes IS NULL
        OR page_bytes IS NULL
        OR nr_node_ids IS NULL
        OR possible_nodes IS NULL
        OR online_memcgs IS NULL
        OR dying_memcgs IS NULL
        OR superblocks IS NULL
        OR list_lrus IS NULL
        OR layout IS NULL
        OR model_version IS NULL
    );
