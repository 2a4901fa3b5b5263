-- In which slab caches and pages are the list_lrus of each given machine of a run?
FROM slab_reconciliation_at($run)
WHERE list_contains($targets, target);
