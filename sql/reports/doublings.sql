-- Which machines of a run are nearest to the next growth of their ids?
FROM next_doubling_at($run)
WHERE next_bytes > 0
ORDER BY ids_left, next_bytes DESC, target
LIMIT 20;
