-- Which run is meant when none is named? The newest of an audit that has a name, else the newest.
CREATE VIEW newest_run AS
SELECT run_id
FROM latest_runs
ORDER BY audit = 'adhoc', started_at DESC, run_id DESC
LIMIT 1;
