-- Is list_lru_one_bytes the number of objects times their size?
SELECT
    target,
    format(
        'list_lru 0x{:x}: {} objects of {} bytes each are not {} bytes',
        address,
        list_lru_one_objects,
        coalesce(CAST(list_lru_one_size AS VARCHAR), 'unknown'),
        list_lru_one_bytes
    ) AS reason
FROM _sized_list_lrus
WHERE CAST(list_lru_one_objects AS HUGEINT) * coalesce(list_lru_one_size, 0) <> list_lru_one_bytes;
