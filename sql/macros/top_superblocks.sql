-- Which n superblocks of one machine of the newest run waste most?
CREATE MACRO top_superblocks(of_target, n) AS TABLE
SELECT * FROM top_superblocks_at((SELECT run_id FROM newest_run), of_target, n);
