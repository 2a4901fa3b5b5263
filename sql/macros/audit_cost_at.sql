-- What did it cost to collect each target of a given run?
-- The collector runs on the audited machine or, for a core or a QEMU guest, on the machine that reads it. It did not
-- run for a core whose rows were carried over, so all costs of that are null.
CREATE MACRO audit_cost_at(run) AS TABLE
SELECT
    target,
    kind,
    status,
    attempts,
    duration_ms,
    CASE WHEN carried_from IS NULL THEN reads END AS reads,
    CASE WHEN carried_from IS NULL THEN read_bytes END AS read_bytes,
    CASE WHEN carried_from IS NULL THEN charged_scan_bytes END AS charged_scan_bytes,
    CASE WHEN carried_from IS NULL THEN peak_rss_bytes END AS peak_rss_bytes,
    list_lrus,
    carried_from
FROM targets
WHERE run_id = run
ORDER BY duration_ms DESC NULLS LAST, target;
