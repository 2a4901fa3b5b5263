-- Which mounts make up the waste of each machine of the newest run?
CREATE VIEW superblock_waste AS
SELECT * FROM superblock_waste_at((SELECT run_id FROM newest_run));
