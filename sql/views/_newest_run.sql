-- Which run do the views of the newest run show?
-- The newest run of an audit that is not `adhoc`, else the newest run; one dated in the future only if all are.
CREATE VIEW _newest_run AS
SELECT run_id
FROM _unrevised_runs
ORDER BY in_future, audit = 'adhoc', position DESC
LIMIT 1;
