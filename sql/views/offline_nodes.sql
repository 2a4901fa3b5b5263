-- What do NUMA nodes that are possible but offline cost each machine of the newest run?
CREATE VIEW offline_nodes AS
SELECT * FROM offline_nodes_at(newest_run_id());
