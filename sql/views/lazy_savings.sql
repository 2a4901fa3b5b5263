-- What would each commit of the lazy series save on each machine of the newest run?
CREATE VIEW lazy_savings AS
SELECT * FROM lazy_savings_at(newest_run_id());
