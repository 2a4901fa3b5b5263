-- What does each list_lru hold now, what would the lazy kernel hold, and what makes the difference? (For views.)
-- The three savings are those of the kernel's commit message: objects for ids that use nothing; all arrays but one,
-- once a list_lru has an array of ids and not one on each node; that one, once it is an xarray. They sum to
-- wasted_bytes on every row, and on a lazy kernel all are 0.
CREATE VIEW sized_list_lrus AS
WITH sized AS (
    SELECT
        *,
        list_lru_one_bytes + pointer_array_bytes + node_array_bytes + xa_node_bytes AS list_lru_bytes,
        coalesce(pointer_array_bytes // nullif(nodes, 0), 0) AS one_array_bytes
    FROM stored_list_lrus
)

SELECT
    * EXCLUDE (one_array_bytes),
    list_lru_bytes - lazy_bytes AS wasted_bytes,
    list_lru_one_bytes - lazy_object_bytes AS saves_objects_bytes,
    pointer_array_bytes - one_array_bytes AS saves_transpose_bytes,
    one_array_bytes + xa_node_bytes - lazy_xa_node_bytes AS saves_xarray_bytes
FROM sized;
