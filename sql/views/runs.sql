-- Which runs were published, of which audit, and how did their targets end?
CREATE VIEW runs AS
SELECT * FROM stored_runs;
