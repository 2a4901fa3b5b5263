-- What does each machine of the newest run pay for NUMA nodes that are possible, but not there?
CREATE VIEW offline_nodes AS
SELECT * FROM offline_nodes_at(newest_run_id());
