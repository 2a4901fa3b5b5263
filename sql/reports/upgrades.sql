-- Which machines of an audit changed their kernel up to a given run, and what did that free?
SELECT u.*
FROM upgrades AS u
JOIN _ordered_runs AS r ON r.run_id = $run AND u.audit = r.audit
JOIN _ordered_runs AS to_run ON u.to_run_id = to_run.run_id AND to_run.position <= r.position
ORDER BY to_run.position DESC, abs(u.freed_bytes) DESC, u.target
LIMIT 50;
