-- Which runs does no other run revise?
CREATE VIEW _unrevised_runs AS
SELECT *
FROM _ordered_runs
WHERE run_id NOT IN (SELECT revision_of FROM runs WHERE revision_of IS NOT NULL);
