-- Which run of each audit is the newest?
-- A run that another run revises is not, nor one that is dated in the future, unless all runs of the audit are.
CREATE VIEW latest_runs AS
SELECT * EXCLUDE (in_future, position)
FROM _unrevised_runs
QUALIFY row_number() OVER (PARTITION BY audit ORDER BY in_future, position DESC) = 1;
