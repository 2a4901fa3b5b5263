-- Which list_lrus did the newest run of each audit find, and what do they cost?
CREATE VIEW latest_list_lrus AS
SELECT list_lrus.*
FROM list_lrus
SEMI JOIN latest_runs USING (run_id);
