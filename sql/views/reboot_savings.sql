-- How much would a reboot free on each eager machine of the newest run?
CREATE VIEW reboot_savings AS
SELECT * FROM reboot_savings_at(newest_run_id());
