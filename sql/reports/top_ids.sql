-- How much do dead ids, empty lists and lists in use waste on each given machine of a run?
FROM id_bloat_at($run)
WHERE list_contains($targets, target)
ORDER BY wasted_bytes DESC, target;
