-- Where every online memcg counts, is the expected figure of the lazy kernel the upper bound?
SELECT
    t.target,
    format(
        'list_lru 0x{:x}: lazy {} on the basis online is not {}',
        l.address,
        l.lazy_bytes,
        l.lazy_high_bytes
    ) AS reason
FROM targets AS t
JOIN sized_list_lrus AS l USING (run_id, target)
WHERE t.lazy_basis = 'online' AND l.lazy_bytes <> l.lazy_high_bytes;
