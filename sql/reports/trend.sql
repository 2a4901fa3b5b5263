-- How did the waste of an audit develop over its last runs, up to a given one?
-- A revised run is left out, and so is what was made later.
SELECT
    r.run_id,
    r.started_at,
    r.targets,
    r.status_ok AS hosts,
    CAST(coalesce(sum(w.list_lru_bytes), 0) AS BIGINT) AS list_lru_bytes,
    CAST(coalesce(sum(w.wasted_bytes), 0) AS BIGINT) AS wasted_bytes
FROM runs AS r
JOIN runs AS this ON this.run_id = $run AND r.audit = this.audit AND r.started_at <= this.started_at
LEFT JOIN sized_list_lrus AS w ON r.run_id = w.run_id
WHERE
    r.run_id = $run
    OR r.run_id NOT IN (SELECT revision_of FROM runs WHERE revision_of IS NOT NULL)
GROUP BY ALL
ORDER BY r.started_at DESC, r.run_id DESC
LIMIT 90;
