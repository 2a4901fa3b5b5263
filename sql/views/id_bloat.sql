-- What does each machine of the newest run pay for ids: dead ones, empty lists of online memcgs, lists in use?
CREATE VIEW id_bloat AS
SELECT * FROM id_bloat_at(newest_run_id());
