-- How did the waste of an audit develop over its last runs, up to a given one?
SELECT
    h.run_id,
    h.started_at,
    h.targets,
    h.hosts,
    h.list_lru_bytes,
    h.wasted_bytes
FROM fleet_history AS h
JOIN runs AS this ON this.run_id = $run AND h.audit = this.audit AND h.started_at <= this.started_at
ORDER BY h.started_at DESC, h.run_id DESC
LIMIT 90;
