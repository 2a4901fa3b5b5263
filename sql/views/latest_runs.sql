-- Which run of each audit is the newest?
-- A run that another run revises is not.
CREATE VIEW latest_runs AS
SELECT *
FROM _unrevised_runs
QUALIFY row_number() OVER (PARTITION BY audit ORDER BY started_at DESC, run_id DESC) = 1;
