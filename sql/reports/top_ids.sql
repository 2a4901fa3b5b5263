-- What do the worst machines of a run pay for ids?
FROM id_bloat_at($run)
WHERE list_contains($targets, target)
ORDER BY wasted_bytes DESC, target;
