-- Are the bytes of dying_memcg_pages its pages, are they less than the memory, and do those of files sum to
-- dying_page_cache of memcg_memory?
SELECT p.target, format('{} pages of {} bytes have {} bytes', p.pages, t.page_bytes, p.bytes) AS reason
FROM dying_memcg_pages AS p
JOIN targets AS t USING (run_id, target)
WHERE p.bytes <> CAST(p.pages AS HUGEINT) * t.page_bytes
UNION ALL
SELECT t.target, format('dying_memcg_pages has more than the {} bytes of memory', t.memory_bytes) AS reason
FROM dying_memcg_pages AS p
JOIN targets AS t USING (run_id, target)
GROUP BY t.run_id, t.target, t.memory_bytes
HAVING sum(p.bytes) > t.memory_bytes
UNION ALL
SELECT m.target, format('dying_page_cache holds {} bytes, but the files have {}', m.held_bytes, f.bytes) AS reason
FROM memcg_memory AS m
JOIN (
    SELECT run_id, target, coalesce(sum(bytes) FILTER (files > 0), 0) AS bytes
    FROM dying_memcg_pages
    GROUP BY run_id, target
) AS f USING (run_id, target)
WHERE m.part = 'dying_page_cache' AND m.held_bytes <> f.bytes;
