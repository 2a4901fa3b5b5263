-- What does each list_lru hold, and what would the lazy kernel hold, in the newest run of each audit?
CREATE VIEW latest_list_lrus AS
SELECT list_lrus.*
FROM list_lrus
SEMI JOIN latest_runs USING (run_id);
