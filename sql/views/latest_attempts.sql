-- What did the attempts of the newest run of each audit come to?
CREATE VIEW latest_attempts AS
SELECT attempts.*
FROM attempts
SEMI JOIN latest_runs USING (run_id);
