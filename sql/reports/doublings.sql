-- Which machines of a run have the fewest ids left before their arrays grow?
FROM next_doubling_at($run)
WHERE next_bytes > 0
ORDER BY ids_left, next_bytes DESC, target
LIMIT 20;
