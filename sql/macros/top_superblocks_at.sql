-- Which n superblocks of one machine of a given run waste most?
CREATE MACRO top_superblocks_at(run, of_target, n) AS TABLE
SELECT s.*
FROM superblock_waste_at(run) AS s
WHERE s.target = of_target AND s.superblock IS NOT NULL
ORDER BY s.wasted_bytes DESC, s.superblock
LIMIT n;
