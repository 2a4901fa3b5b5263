-- Which run do the views of the newest run show?
-- The newest run of an audit that is not `adhoc`, else the newest run.
CREATE VIEW _newest_run AS
SELECT run_id
FROM latest_runs
ORDER BY audit = 'adhoc', started_at DESC, run_id DESC
LIMIT 1;
