-- Is lazy_bytes equal to lazy_high_bytes where lazy_basis is online?
SELECT
    t.target,
    format(
        'list_lru 0x{:x}: lazy_basis is online, but lazy_bytes {} is not lazy_high_bytes {}',
        l.address,
        l.lazy_bytes,
        l.lazy_high_bytes
    ) AS reason
FROM targets AS t
JOIN _sized_list_lrus AS l USING (run_id, target)
WHERE t.lazy_basis = 'online' AND l.lazy_bytes <> l.lazy_high_bytes;
