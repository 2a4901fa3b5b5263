-- Which target stands for the machine of each ok target of a given run?
-- Boots of one host name are candidates for one machine if they agree in what a reboot keeps: architecture, page size,
-- possible nodes and memory (to an eighth), and in the labels whose names they all have. Of these as many are machines
-- as were up at the same time, or were audited running with another machine_id: the newest ones.
CREATE MACRO _boot_machines_at(run) AS TABLE
WITH targets_of_boots AS (
    SELECT
        *,
        hash(host_name, hardware, memory_step) AS namesake
    FROM _boots_at(run)
),

namesakes AS (
    SELECT
        namesake,
        count(*) FILTER (cardinality(labels) > 0) AS labelled_boots
    FROM targets_of_boots
    WHERE host_name IS NOT NULL AND target = boot_target
    GROUP BY namesake
    HAVING count(*) > 1
),

boots AS (
    SELECT *
    FROM targets_of_boots
    JOIN namesakes USING (namesake)
    WHERE host_name IS NOT NULL AND target = boot_target
),

labels_of_boots AS (
    SELECT
        namesake,
        labelled_boots,
        target,
        unnest(map_entries(labels)) AS label
    FROM boots
),

common_labels AS (
    SELECT namesake, label.key AS name
    FROM labels_of_boots
    GROUP BY namesake, label.key, labelled_boots
    HAVING count(*) = labelled_boots
),

label_values AS (
    SELECT l.target, bit_xor(hash(l.label)) AS label_values
    FROM labels_of_boots AS l
    JOIN common_labels AS c ON l.namesake = c.namesake AND l.label.key = c.name
    GROUP BY l.target
),

-- A boot without labels agrees with those that have them, if they agree with each other.
candidates AS (
    SELECT
        *,
        coalesce(label_values, if(first_values = last_values, first_values, NULL)) AS label_group,
        hash(namesake, label_group) AS candidate
    FROM (
        SELECT
            *,
            min(label_values) OVER (PARTITION BY namesake) AS first_values,
            max(label_values) OVER (PARTITION BY namesake) AS last_values
        FROM boots
        LEFT JOIN label_values USING (target)
    )
),

-- Until it is set after a boot, a clock may be off by some seconds.
lives AS (
    SELECT candidate, booted_at, captured_at - INTERVAL 1 MINUTE AS ended_at
    FROM candidates
    WHERE booted_at < captured_at - INTERVAL 1 MINUTE
),

live_counts AS (
    SELECT
        candidate,
        sum(change) OVER (PARTITION BY candidate ORDER BY moment, change ROWS UNBOUNDED PRECEDING) AS live_boots
    FROM (
        SELECT candidate, booted_at AS moment, 1 AS change FROM lives
        UNION ALL
        SELECT candidate, ended_at AS moment, -1 AS change FROM lives
    )
),

most_live AS (
    SELECT candidate, max(live_boots) AS live_boots
    FROM live_counts
    GROUP BY candidate
),

machine_counts AS (
    SELECT
        c.candidate,
        greatest(
            1,
            max(m.live_boots),
            count(DISTINCT coalesce(c.machine_id, c.target)) FILTER (NOT c.is_core)
        ) AS machines
    FROM candidates AS c
    LEFT JOIN most_live AS m USING (candidate)
    GROUP BY c.candidate
),

boot_machines AS (
    SELECT
        boot_target,
        label_group,
        if(row_number() OVER newest_first <= machines, target, first_value(target) OVER newest_first) AS machine_target
    FROM candidates
    JOIN machine_counts USING (candidate)
    WINDOW newest_first AS (PARTITION BY candidate ORDER BY is_core, captured_at DESC NULLS LAST, target)
)

SELECT
    t.target,
    t.is_core,
    t.host_name,
    t.hardware,
    t.memory_step,
    b.label_group,
    coalesce(b.machine_target, t.boot_target) AS machine_target
FROM targets_of_boots AS t
LEFT JOIN boot_machines AS b USING (boot_target);
