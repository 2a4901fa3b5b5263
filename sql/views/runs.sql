-- Which runs are published, and how did their targets end?
CREATE VIEW runs AS
SELECT * FROM _stored_runs;
