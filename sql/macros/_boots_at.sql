-- Which ok targets of a given run are the same boot of the same machine, reached or dumped more than once?
-- boot_target is one of them: the newest audit of the running kernel, else the newest core. They have the same boot_id
-- or, where one of them has none, the same host name, build, memory, nodes and time of boot, or are copies of one core.
CREATE MACRO _boots_at(run) AS TABLE
WITH candidates AS (
    SELECT
        target,
        kind = 'vmcore' AS is_core,
        CASE WHEN NOT regexp_full_match(trim(host), '(\(none\)|localhost[46]?(\..*)?)?', 'i') THEN host END
            AS host_name,
        hash(arch, page_bytes, possible_nodes) AS hardware,
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
-- Debian's 5.10 and 6.1 differ by 3 % of 256 MiB. A step of more than an eighth is another machine.
memory_sizes AS (
    SELECT
        *,
        coalesce(
            8 * memory_bytes
            > 9 * lag(memory_bytes) OVER (PARTITION BY host_name, hardware ORDER BY memory_bytes, target),
            false
        ) AS is_step
    FROM candidates
),

memory_steps AS (
    SELECT
        * EXCLUDE (is_step),
        count(*) FILTER (is_step) OVER (
            PARTITION BY host_name, hardware
            ORDER BY memory_bytes, target
            ROWS UNBOUNDED PRECEDING
        ) AS memory_step
    FROM memory_sizes
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
    FROM memory_steps
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
        *,
        coalesce(boot_id, if(known_boot_id = last_boot_id, known_boot_id, NULL), first_target) AS boot
    FROM boot_ids
)

SELECT
    * EXCLUDE (build, boot_id, machine_id, core_id, first_target, known_boot_id, last_boot_id, boot),
    first_value(target) OVER newest_first AS boot_target,
    max(machine_id) OVER same_boot AS machine_id
FROM boots
WINDOW
    same_boot AS (PARTITION BY boot, host_name, hardware),
    newest_first AS (PARTITION BY boot, host_name, hardware ORDER BY is_core, captured_at DESC NULLS LAST, target);
