-- How many bytes would a kernel upgrade free and take on each machine of a run?
FROM upgrade_net_at($run)
ORDER BY net_bytes DESC, target;
