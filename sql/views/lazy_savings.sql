-- What would the lazy kernel give back on each machine of the newest run, and by which of its three steps?
CREATE VIEW lazy_savings AS
SELECT * FROM lazy_savings_at(newest_run_id());
