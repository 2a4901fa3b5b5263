-- What did it cost to collect each target of the newest run?
CREATE VIEW audit_cost AS
SELECT * FROM audit_cost_at(newest_run_id());
