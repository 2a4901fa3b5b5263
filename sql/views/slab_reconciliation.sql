-- Which slab cache of each machine of the newest run is full of list_lru_one, and where is the rest?
CREATE VIEW slab_reconciliation AS
SELECT * FROM slab_reconciliation_at(newest_run_id());
