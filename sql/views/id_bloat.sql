-- How much do dead ids, empty lists and lists in use waste on each machine of the newest run?
CREATE VIEW id_bloat AS
SELECT * FROM id_bloat_at(newest_run_id());
