-- Do the bytes of the list_lrus fit into the machine, and what a lazy kernel would hold into a sum over a fleet?
SELECT
    t.target,
    format(
        'list_lrus of {} bytes in {} bytes of memory',
        CAST(
            CASE
                WHEN sum(l.list_lru_bytes) > t.memory_bytes THEN sum(l.list_lru_bytes)
                ELSE sum(l.lazy_high_bytes)
            END AS BIGINT
        ),
        t.memory_bytes
    ) AS reason
FROM targets AS t
JOIN sized_list_lrus AS l USING (run_id, target)
WHERE t.status = 'ok'
GROUP BY t.run_id, t.target, t.memory_bytes
HAVING sum(l.list_lru_bytes) > t.memory_bytes OR sum(l.lazy_high_bytes) > 4503599627370496;
