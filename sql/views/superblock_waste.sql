-- How much does each superblock waste on each machine of the newest run?
CREATE VIEW superblock_waste AS
SELECT * FROM superblock_waste_at(newest_run_id());
