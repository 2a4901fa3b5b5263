-- How much of its slab cache is list_lru_one on each machine of the newest run, and where are the other bytes?
CREATE VIEW slab_reconciliation AS
SELECT * FROM slab_reconciliation_at(newest_run_id());
