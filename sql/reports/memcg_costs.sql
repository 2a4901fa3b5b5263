-- What does each part of what memory cgroups cost hold on the machines of a run, and what after an upgrade?
-- Each machine counts once. upgraded_bytes include what a machine holds for which nothing is predicted, and are null if
-- nothing is predicted for any. Where lazy_basis is online, upgraded_bytes of list_lru is an upper bound: then
-- upgraded_at_most is true.
SELECT
    part,
    CAST(count(*) AS BIGINT) AS hosts,
    CAST(sum(held_bytes) AS BIGINT) AS held_bytes,
    CAST(sum(online_bytes) AS BIGINT) AS online_bytes,
    CAST(sum(dying_bytes) AS BIGINT) AS dying_bytes,
    CAST(sum(left_bytes) AS BIGINT) AS left_bytes,
    CASE WHEN count(upgraded_bytes) > 0 THEN CAST(sum(coalesce(upgraded_bytes, held_bytes)) AS BIGINT) END
        AS upgraded_bytes,
    bool_or(part = 'list_lru' AND upgraded_bytes IS NOT NULL AND _is_lower_bound(lazy_basis)) AS upgraded_at_most
FROM memcg_memory
JOIN _machines_at($run) USING (target)
WHERE run_id = $run
GROUP BY part
ORDER BY held_bytes DESC, part;
