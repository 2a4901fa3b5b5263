-- Do the parts of memcg_memory and the kernel's totals fit into the memory, and predictions into a sum over a fleet?
-- 2^52 bytes for each target keep the sum over 2,047 targets within a BIGINT.
SELECT
    t.target,
    format('parts or totals do not fit into {} bytes of memory', t.memory_bytes) AS reason
FROM targets AS t
LEFT JOIN memcg_memory AS m USING (run_id, target)
WHERE t.status = 'ok'
GROUP BY t.run_id, t.target, t.memory_bytes, t.slab_unreclaimable_bytes, t.slab_reclaimable_bytes, t.percpu_bytes
HAVING
    sum(m.held_bytes) FILTER (m.part <> 'dying_page_cache') > t.memory_bytes
    OR sum(m.upgraded_bytes) > 4503599627370496
    OR greatest(t.slab_unreclaimable_bytes, t.slab_reclaimable_bytes, t.percpu_bytes) > t.memory_bytes;
