-- Which machine does each ok target of the newest run show, and which target stands for that machine?
CREATE VIEW machines AS
FROM machines_at(newest_run_id());
