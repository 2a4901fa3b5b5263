-- Which ok targets of a given run are the same boot of the same machine, reached or dumped more than once?
-- boot_target is one of them: the newest audit of the running kernel, else the newest core. They have the same boot_id
-- or, where one of them has none, the same host name, build, memory, nodes and time of boot, or are copies of one core,
-- and no two machine_ids. memory_step is the largest memory that a target's is taken to be the same as.
CREATE MACRO _boots_at(run) AS TABLE
WITH RECURSIVE candidates AS (
    SELECT
        target,
        kind = 'vmcore' AS is_core,
        CASE WHEN NOT regexp_full_match(trim(host), '(\(none\)|localhost[46]?(\..*)?)?', 'i') THEN host END
            AS host_name,
        hash(arch, page_bytes, possible_nodes) AS hardware,
        hash(host_name, hardware) AS namesake,
        hash(kernel_release, kernel_version) AS build,
        memory_bytes,
        labels,
        captured_at,
        booted_at,
        boot_id,
        machine_id,
        core_id
    FROM targets
    WHERE run_id = run AND status = 'ok'
),

-- Kernels of one machine manage different parts of its memory: a crash kernel's reserve takes a few hundred MiB, and
-- Debian's 5.10 and 6.1 differ by 3 % of 256 MiB. A size that is more than an eighth below the largest of a step begins
-- the next step: sizes in between do not join two that differ by more.
memory_sizes AS (
    SELECT DISTINCT namesake, memory_bytes
    FROM candidates
),

memory_steps AS (
    SELECT namesake, max(memory_bytes) AS memory_step
    FROM memory_sizes
    GROUP BY namesake
    UNION ALL
    SELECT namesake, max(memory_bytes) AS memory_step
    FROM memory_steps
    JOIN memory_sizes USING (namesake)
    WHERE 9 * memory_bytes < 8 * memory_step
    GROUP BY namesake
),

stepped_targets AS (
    SELECT
        c.* EXCLUDE (namesake),
        s.memory_step
    FROM candidates AS c
    ASOF LEFT JOIN memory_steps AS s ON c.namesake = s.namesake AND c.memory_bytes <= s.memory_step
),

first_targets AS (
    SELECT
        *,
        CASE
            WHEN host_name IS NOT NULL AND booted_at IS NOT NULL
                THEN min(target) OVER (PARTITION BY host_name, hardware, memory_step, build, booted_at)
            WHEN core_id IS NOT NULL THEN min(target) OVER (PARTITION BY host_name, core_id)
            ELSE target
        END AS first_target
    FROM stepped_targets
),

boot_ids AS (
    SELECT
        *,
        min(boot_id) OVER same_boot AS known_boot_id,
        max(boot_id) OVER same_boot AS last_boot_id
    FROM first_targets
    WINDOW same_boot AS (PARTITION BY first_target)
),

boots AS (
    SELECT
        * EXCLUDE (known_boot_id, last_boot_id),
        coalesce(boot_id, if(known_boot_id = last_boot_id, known_boot_id, NULL)) AS shared_boot_id,
        if(shared_boot_id IS NULL, first_target, NULL) AS lone_target
    FROM boot_ids
),

-- Machines that were resumed from one snapshot of memory have one boot_id. What has no machine_id is one of them.
machine_ids AS (
    SELECT
        * EXCLUDE (machine_id),
        coalesce(
            machine_id,
            min(machine_id) OVER (PARTITION BY shared_boot_id, lone_target, host_name, hardware)
        ) AS machine_id
    FROM boots
)

SELECT
    * EXCLUDE (build, boot_id, core_id, first_target, shared_boot_id, lone_target),
    first_value(target) OVER (
        PARTITION BY shared_boot_id, lone_target, host_name, hardware, machine_id
        ORDER BY is_core, captured_at DESC NULLS LAST, target
    ) AS boot_target
FROM machine_ids;
