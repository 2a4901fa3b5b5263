-- What did the newest run cost each machine that it audited, or the collector that read its core?
CREATE VIEW audit_cost AS
SELECT * FROM audit_cost_at(newest_run_id());
