-- Which machine does each ok target of a given run show, and which target stands for that machine?
-- The audit of the running machine stands for it, else its newest core. relation is `machine` for that target, `copy`
-- for a core that another target has too, `again` for a running machine that another target is too, else `older core`.
-- Targets are one boot if they have the same boot_id or, where one of them has none, the same host name, build, memory,
-- nodes and time of boot, and no two machine_ids. Boots of one host name are one machine if they agree in architecture,
-- page size, possible nodes, memory (at most an eighth below the largest) and the labels that they all have, and follow
-- each other; audits of running boots have the same machine_id too. Of several machines that it may be of, a core is of
-- the one that booted next. A core whose host name is empty or a default, such as localhost, is a machine of its own,
-- except for other targets of the same boot.
CREATE MACRO machines_at(run) AS TABLE
SELECT
    m.target,
    m.host_name,
    m.machine_target,
    CASE
        WHEN m.target = m.machine_target THEN 'machine'
        WHEN c.target IS NOT NULL THEN 'copy'
        WHEN m.is_core THEN 'older core'
        ELSE 'again'
    END AS relation
FROM _boot_machines_at(run) AS m
LEFT JOIN core_copies_at(run) AS c USING (target)
ORDER BY m.target;
