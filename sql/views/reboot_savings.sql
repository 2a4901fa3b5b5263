-- What would a reboot alone give back on each eager machine of the newest run, until its ids are used up again?
CREATE VIEW reboot_savings AS
SELECT * FROM reboot_savings_at(newest_run_id());
