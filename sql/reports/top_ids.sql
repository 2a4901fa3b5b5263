-- How much do dead ids, empty lists and lists in use waste on each given machine of a run?
SELECT
    b.*,
    _is_lower_bound(t.lazy_basis) AS lower_bound
FROM id_bloat_at($run) AS b
JOIN (SELECT target, lazy_basis FROM targets WHERE run_id = $run) AS t USING (target)
WHERE list_contains($targets, target)
ORDER BY wasted_bytes DESC, target;
