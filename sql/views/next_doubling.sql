-- How near is each eager machine of the newest run to the next growth of its ids, and what will that cost?
CREATE VIEW next_doubling AS
SELECT * FROM next_doubling_at(newest_run_id());
