-- Which is the newest run of each audit? A run that another one revises is not.
CREATE VIEW latest_runs AS
SELECT *
FROM runs
WHERE run_id NOT IN (SELECT revision_of FROM runs WHERE revision_of IS NOT NULL)
QUALIFY row_number() OVER (PARTITION BY audit ORDER BY started_at DESC, run_id DESC) = 1;
