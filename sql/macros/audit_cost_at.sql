-- What did it cost to collect each target of a given run?
-- The collector runs on the audited machine or, for a core or a QEMU guest, on the machine that reads it.
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
