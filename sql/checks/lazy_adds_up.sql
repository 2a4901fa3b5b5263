-- Is lazy_bytes the sum of its parts?
SELECT
    target,
    format(
        'list_lru 0x{:x}: lazy_bytes is {}, but its parts are {} + {} + {}',
        address,
        lazy_bytes,
        node_array_bytes,
        lazy_object_bytes,
        lazy_xa_node_bytes
    ) AS reason
FROM _sized_list_lrus
WHERE lazy_bytes <> node_array_bytes + lazy_object_bytes + lazy_xa_node_bytes;
