-- Which targets of the newest run have a core that another target has too?
CREATE VIEW core_copies AS
SELECT * FROM core_copies_at(newest_run_id());
