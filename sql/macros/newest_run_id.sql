-- Which run is meant when none is named? That of newest_run, as a value.
-- A session puts the run_id itself in its place: where a run is given so, no file of another one is opened.
CREATE MACRO newest_run_id() AS
(SELECT run_id FROM newest_run);
