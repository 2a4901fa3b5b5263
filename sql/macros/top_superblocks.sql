-- Which n superblocks of one machine of the newest run waste most?
CREATE MACRO top_superblocks(of_target, n) AS TABLE
SELECT * FROM top_superblocks_at(newest_run_id(), of_target, n);
