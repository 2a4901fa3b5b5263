-- Do the list_lrus of each machine fit into its memory, and the lazy upper bound into a sum over a fleet?
-- 2^52 bytes for each target keep the sum over 2,047 targets within a BIGINT.
SELECT
    t.target,
    format(
        'list_lrus of {} bytes do not fit into {} bytes of memory',
        CAST(
            CASE
                WHEN sum(l.list_lru_bytes) > t.memory_bytes THEN sum(l.list_lru_bytes)
                ELSE sum(l.lazy_high_bytes)
            END AS BIGINT
        ),
        t.memory_bytes
    ) AS reason
FROM targets AS t
JOIN _sized_list_lrus AS l USING (run_id, target)
WHERE t.status = 'ok'
GROUP BY t.run_id, t.target, t.memory_bytes
HAVING sum(l.list_lru_bytes) > t.memory_bytes OR sum(l.lazy_high_bytes) > 4503599627370496;
