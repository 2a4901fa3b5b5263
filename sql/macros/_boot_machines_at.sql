-- Which target stands for the machine of each ok target of a given run?
-- Boots of one host name are candidates for one machine if they agree in what a reboot keeps: architecture, page size,
-- possible nodes, memory (as _boots_at has it), and in the labels whose names they all have. A core is of a machine
-- whose next boot began after it was taken; so as many are machines as were up at the same time. Each audit of a
-- running machine is one, unless it follows another with the same machine_id.
CREATE MACRO _boot_machines_at(run) AS TABLE
WITH RECURSIVE targets_of_boots AS (
    SELECT
        *,
        hash(host_name, hardware, memory_step) AS namesake
    FROM _boots_at(run)
),

namesakes AS (
    SELECT namesake
    FROM targets_of_boots
    WHERE host_name IS NOT NULL AND target = boot_target
    GROUP BY namesake
    HAVING count(*) > 1
),

boots AS (
    SELECT * EXCLUDE (labels)
    FROM targets_of_boots
    SEMI JOIN namesakes USING (namesake)
    WHERE host_name IS NOT NULL AND target = boot_target
),

-- A boot has the labels of all its targets, except for those with which its targets contradict each other.
labels_of_boots AS (
    SELECT
        b.namesake,
        b.target,
        l.label.key AS name,
        min(l.label.value) AS value
    FROM (SELECT boot_target, unnest(map_entries(labels)) AS label FROM targets_of_boots) AS l
    JOIN boots AS b USING (boot_target)
    GROUP BY b.namesake, b.target, l.label.key
    HAVING min(l.label.value) = max(l.label.value)
),

labelled_boots AS (
    SELECT namesake, count(DISTINCT target) AS labelled_boots
    FROM labels_of_boots
    GROUP BY namesake
),

common_labels AS (
    SELECT l.namesake, l.name
    FROM labels_of_boots AS l
    JOIN labelled_boots AS b USING (namesake)
    GROUP BY l.namesake, l.name, b.labelled_boots
    HAVING count(*) = b.labelled_boots
),

label_values AS (
    SELECT target, bit_xor(hash(name, value)) AS label_values
    FROM labels_of_boots
    SEMI JOIN common_labels USING (namesake, name)
    GROUP BY target
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
timed_boots AS (
    SELECT
        *,
        captured_at - INTERVAL 1 MINUTE AS ended_at,
        max(ended_at) OVER (
            PARTITION BY candidate, is_core, machine_id
            ORDER BY booted_at, target
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS others_ended_at
    FROM candidates
),

-- Audits of running machines with one machine_id that follow each other are one machine, which was rebooted.
reboots AS (
    SELECT
        *,
        count(*) FILTER (booted_at < others_ended_at) OVER (
            PARTITION BY candidate, is_core, machine_id
            ORDER BY booted_at, target
            ROWS UNBOUNDED PRECEDING
        ) AS series
    FROM timed_boots
),

members AS (
    SELECT
        * EXCLUDE (others_ended_at, series),
        CASE
            WHEN is_core OR machine_id IS NULL THEN target
            ELSE min(target) OVER (PARTITION BY candidate, is_core, machine_id, series)
        END AS life
    FROM reboots
),

lives AS (
    SELECT
        candidate,
        life,
        bool_and(is_core) AS is_core,
        min(booted_at) AS booted_at,
        max(ended_at) AS ended_at,
        coalesce(min(booted_at) < max(ended_at), false) AS is_timed
    FROM members
    GROUP BY candidate, life
),

-- Back in time, each life leaves its machine to an earlier one where it began, and each core takes the machine that was
-- left last, if one is left. So there are as many machines as were up at the same time.
moments AS (
    SELECT candidate, life, booted_at AS moment, false AS is_end FROM lives WHERE is_timed
    UNION ALL
    SELECT candidate, life, ended_at AS moment, true AS is_end FROM lives WHERE is_timed AND is_core
),

steps AS (
    SELECT
        *,
        row_number() OVER back_in_time AS step,
        sum(if(is_end, -1, 1)) OVER back_in_time AS balance
    FROM moments
    WINDOW back_in_time AS (PARTITION BY candidate ORDER BY moment DESC, is_end, life ROWS UNBOUNDED PRECEDING)
),

-- depth is how many machines are left, with the one that is left or taken.
depths AS (
    SELECT
        *,
        balance + if(is_end, 1, 0) - least(0, min(balance) OVER by_step) AS depth
    FROM steps
    WINDOW by_step AS (PARTITION BY candidate ORDER BY step ROWS UNBOUNDED PRECEDING)
),

next_lives AS (
    SELECT
        life,
        lag(life) OVER same_depth AS next_life
    FROM depths
    WINDOW same_depth AS (PARTITION BY candidate, depth ORDER BY step)
    QUALIFY is_end AND NOT lag(is_end) OVER same_depth
),

-- A core whose time of boot is unknown is of no machine yet.
lives_of_machines AS (
    SELECT life, life AS machine
    FROM lives
    ANTI JOIN next_lives USING (life)
    WHERE is_timed OR NOT is_core
    UNION ALL
    SELECT n.life, m.machine
    FROM lives_of_machines AS m
    JOIN next_lives AS n ON m.life = n.next_life
),

boot_machines AS (
    SELECT
        target,
        boot_target,
        label_group,
        is_core,
        captured_at,
        coalesce(
            machine,
            first_value(coalesce(machine, target)) OVER (
                PARTITION BY candidate
                ORDER BY machine IS NULL, is_core, captured_at DESC NULLS LAST, target
            )
        ) AS machine
    FROM members
    LEFT JOIN lives_of_machines USING (life)
),

machine_targets AS (
    SELECT
        boot_target,
        label_group,
        first_value(target) OVER (
            PARTITION BY machine
            ORDER BY is_core, captured_at DESC NULLS LAST, target
        ) AS machine_target
    FROM boot_machines
)

SELECT
    t.target,
    t.boot_target,
    t.is_core,
    t.host_name,
    t.hardware,
    t.memory_step,
    b.label_group,
    coalesce(b.machine_target, t.boot_target) AS machine_target
FROM targets_of_boots AS t
LEFT JOIN machine_targets AS b USING (boot_target);
