-- Which hosts of the newest run, as few as possible, free this many bytes with the lazy kernel?
CREATE MACRO upgrade_plan(bytes) AS TABLE
SELECT * FROM upgrade_plan_at(newest_run_id(), bytes);
