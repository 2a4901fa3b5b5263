-- Which run do the views of the newest run show?
-- It is the run_id of _newest_run. A session replaces this macro with the constant, so that DuckDB opens no file of
-- another run.
CREATE MACRO newest_run_id() AS
(SELECT run_id FROM _newest_run);
