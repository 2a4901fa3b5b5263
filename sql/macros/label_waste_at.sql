-- How much do the targets with each label, such as a rack or a role, waste in a given run?
-- The row without a value has the targets that lack the label, so the rows of a label sum to the fleet. A value whose
-- targets all failed has targets and no hosts.
CREATE MACRO label_waste_at(run) AS TABLE
WITH hosts AS (
    SELECT
        t.target,
        t.labels,
        CAST(w.target IS NOT NULL AS INTEGER) AS host,
        coalesce(w.list_lru_bytes, 0) AS list_lru_bytes,
        coalesce(w.lazy_bytes, 0) AS lazy_bytes,
        coalesce(w.wasted_bytes, 0) AS wasted_bytes,
        CAST(coalesce(w.lower_bound, false) AS INTEGER) AS lower_bound
    FROM targets AS t
    LEFT JOIN host_waste_at(run) AS w USING (target)
    WHERE t.run_id = run
),

fleet AS (
    SELECT
        count(*) AS targets,
        sum(host) AS hosts,
        sum(list_lru_bytes) AS list_lru_bytes,
        sum(lazy_bytes) AS lazy_bytes,
        sum(wasted_bytes) AS wasted_bytes,
        sum(lower_bound) AS lower_bounds
    FROM hosts
),

label_values AS (
    SELECT
        entry.key AS label,
        entry.value AS value,
        count(*) AS targets,
        sum(host) AS hosts,
        sum(list_lru_bytes) AS list_lru_bytes,
        sum(lazy_bytes) AS lazy_bytes,
        sum(wasted_bytes) AS wasted_bytes,
        sum(lower_bound) AS lower_bounds
    FROM (SELECT *, unnest(map_entries(labels)) AS entry FROM hosts)
    GROUP BY label, value
),

label_sums AS (
    SELECT
        label,
        sum(targets) AS targets,
        sum(hosts) AS hosts,
        sum(list_lru_bytes) AS list_lru_bytes,
        sum(lazy_bytes) AS lazy_bytes,
        sum(wasted_bytes) AS wasted_bytes,
        sum(lower_bounds) AS lower_bounds
    FROM label_values
    GROUP BY label
),

parts AS (
    SELECT * FROM label_values
    UNION ALL
    SELECT
        s.label,
        NULL AS value,
        f.targets - s.targets AS targets,
        f.hosts - s.hosts AS hosts,
        f.list_lru_bytes - s.list_lru_bytes AS list_lru_bytes,
        f.lazy_bytes - s.lazy_bytes AS lazy_bytes,
        f.wasted_bytes - s.wasted_bytes AS wasted_bytes,
        f.lower_bounds - s.lower_bounds AS lower_bounds
    FROM label_sums AS s
    CROSS JOIN fleet AS f
)

SELECT
    label,
    value,
    CAST(targets AS BIGINT) AS targets,
    CAST(hosts AS BIGINT) AS hosts,
    CAST(list_lru_bytes AS BIGINT) AS list_lru_bytes,
    CAST(lazy_bytes AS BIGINT) AS lazy_bytes,
    CAST(wasted_bytes AS BIGINT) AS wasted_bytes,
    lower_bounds > 0 AS lower_bound
FROM parts
WHERE targets > 0
ORDER BY label, wasted_bytes DESC, value;
