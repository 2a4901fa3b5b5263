-- How many bytes would a kernel upgrade free and take on each machine of the newest run?
CREATE VIEW upgrade_net AS
SELECT * FROM upgrade_net_at(newest_run_id());
