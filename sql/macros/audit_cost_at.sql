-- What did a given run cost each machine that it audited, or the collector that read its core?
CREATE MACRO audit_cost_at(run) AS TABLE
SELECT
    target,
    kind,
    status,
    attempts,
    duration_ms,
    reads,
    read_bytes,
    charged_scan_bytes,
    peak_rss_bytes,
    list_lrus
FROM targets
WHERE run_id = run
ORDER BY duration_ms DESC NULLS LAST, target;
