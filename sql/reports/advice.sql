-- How many bytes does each step against the waste of a run free?
-- The answer is one row. A host counts once: the audit of the host itself, else its newest core.
WITH machines AS (
    FROM _machines_at($run)
),

hosts AS (
    SELECT
        w.target,
        w.wasted_bytes,
        w.lower_bound,
        sum(w.wasted_bytes) OVER (ORDER BY w.wasted_bytes DESC, w.target) AS running_bytes,
        sum(w.wasted_bytes) OVER () AS all_bytes
    FROM host_waste_at($run) AS w
    SEMI JOIN machines USING (target)
    WHERE w.lazy_basis IS NOT NULL AND w.wasted_bytes > 0
),

-- A host in a doubling has bytes of new ids, but no dead id.
id_sums AS (
    SELECT
        sum(dead_ids) AS dead_ids,
        sum(dead_ids_bytes) AS dead_ids_bytes,
        count(*) FILTER (dead_ids_bytes > 0) AS dead_ids_hosts
    FROM id_bloat_at($run)
    SEMI JOIN machines USING (target)
    WHERE dead_ids > 0
),

-- A boot with cgroup.memory=nokmem allocates the node arrays only.
nokmem AS (
    SELECT sum(list_lru_one_bytes + pointer_array_bytes) AS nokmem_bytes
    FROM _sized_list_lrus
    JOIN hosts USING (target)
    WHERE run_id = $run
),

-- A reboot saves this until the ids are used up again.
reboots AS (
    SELECT sum(reboot_saves_bytes) AS reboot_bytes
    FROM reboot_savings_at($run)
    SEMI JOIN machines USING (target)
),

doublings AS (
    SELECT
        count(*) AS next_hosts,
        count(t.growing_to_cache_ids) AS growing_hosts,
        sum(d.next_bytes) AS next_bytes
    FROM next_doubling_at($run) AS d
    JOIN targets AS t ON t.run_id = $run AND d.target = t.target
    SEMI JOIN machines AS m ON d.target = m.target
    WHERE d.next_bytes > 0 AND 10 * d.ids_left <= d.memcg_nr_cache_ids
)

SELECT
    CAST(count(*) AS BIGINT) AS eager_hosts,
    CAST(coalesce(sum(hosts.wasted_bytes), 0) AS BIGINT) AS wasted_bytes,
    coalesce(bool_or(hosts.lower_bound), false) AS lower_bound,
    CAST(count(*) FILTER (hosts.running_bytes - hosts.wasted_bytes < 0.9 * hosts.all_bytes) AS BIGINT) AS few_hosts,
    CAST(
        coalesce(
            sum(hosts.wasted_bytes) FILTER (hosts.running_bytes - hosts.wasted_bytes < 0.9 * hosts.all_bytes),
            0
        ) AS BIGINT
    ) AS few_bytes,
    CAST(coalesce(any_value(nokmem.nokmem_bytes), 0) AS BIGINT) AS nokmem_bytes,
    CAST(coalesce(any_value(id_sums.dead_ids), 0) AS BIGINT) AS dead_ids,
    CAST(coalesce(any_value(id_sums.dead_ids_bytes), 0) AS BIGINT) AS dead_ids_bytes,
    CAST(coalesce(any_value(id_sums.dead_ids_hosts), 0) AS BIGINT) AS dead_ids_hosts,
    CAST(coalesce(any_value(reboots.reboot_bytes), 0) AS BIGINT) AS reboot_bytes,
    CAST(any_value(doublings.next_hosts) AS BIGINT) AS next_hosts,
    CAST(any_value(doublings.growing_hosts) AS BIGINT) AS growing_hosts,
    CAST(coalesce(any_value(doublings.next_bytes), 0) AS BIGINT) AS next_bytes
FROM hosts
CROSS JOIN id_sums
CROSS JOIN nokmem
CROSS JOIN reboots
CROSS JOIN doublings;
