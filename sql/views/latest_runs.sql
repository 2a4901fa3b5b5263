-- Which is the newest run of each audit? A run that another one revises is not.
CREATE VIEW latest_runs AS
SELECT *
FROM unrevised_runs
QUALIFY row_number() OVER (PARTITION BY audit ORDER BY started_at DESC, run_id DESC) = 1;
