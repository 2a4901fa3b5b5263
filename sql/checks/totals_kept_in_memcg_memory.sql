-- Are the sums stored with each target those of the part list_lru of memcg_memory, to the byte?
SELECT
    t.target,
    format(
        'list_lru holds {} and upgraded {} bytes in memcg_memory, but the list_lrus sum to {} and lazy {}',
        m.held_bytes,
        coalesce(CAST(m.upgraded_bytes AS VARCHAR), 'unknown'),
        t.list_lru_bytes,
        t.lazy_bytes
    ) AS reason
FROM targets AS t
JOIN memcg_memory AS m USING (run_id, target)
WHERE
    m.part = 'list_lru'
    AND (m.held_bytes <> t.list_lru_bytes OR t.lazy_basis IS NOT NULL AND m.upgraded_bytes <> t.lazy_bytes);
