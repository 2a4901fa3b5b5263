-- How many ids are left before the arrays of each eager machine of the newest run grow, and at what cost?
CREATE VIEW next_doubling AS
SELECT * FROM next_doubling_at(newest_run_id());
