-- What does each list_lru hold and waste, and what would each commit of the lazy series save?
-- saves_objects_bytes: commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed") (in v5.18) has no
-- objects for ids without items.
-- saves_transpose_bytes: commit 6a6b7b77cc0f ("mm: list_lru: transpose the array of per-node per-memcg lru lists") (in
-- v5.18) has one array for each list_lru instead of one for each node.
-- saves_xarray_bytes: commit bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (in v5.18) replaces it.
-- The three sum to wasted_bytes on every row. On a lazy kernel they are 0.
CREATE VIEW _sized_list_lrus AS
WITH sizes AS (
    SELECT
        *,
        list_lru_one_bytes + pointer_array_bytes + node_array_bytes + xa_node_bytes AS list_lru_bytes,
        coalesce(pointer_array_bytes // nullif(nodes, 0), 0) AS one_array_bytes
    FROM _stored_list_lrus
)

SELECT
    * EXCLUDE (one_array_bytes),
    list_lru_bytes - lazy_bytes AS wasted_bytes,
    list_lru_one_bytes - lazy_object_bytes AS saves_objects_bytes,
    pointer_array_bytes - one_array_bytes AS saves_transpose_bytes,
    one_array_bytes + xa_node_bytes - lazy_xa_node_bytes AS saves_xarray_bytes
FROM sizes;
