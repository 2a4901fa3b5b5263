-- Which machines of an audit got another kernel in its last runs, up to a given one, and what did that free?
SELECT u.*
FROM upgrades AS u
JOIN runs AS this ON this.run_id = $run AND u.audit = this.audit
JOIN runs AS later ON u.to_run_id = later.run_id AND later.started_at <= this.started_at
ORDER BY u.to_captured_at DESC, abs(u.freed_bytes) DESC, u.target
LIMIT 50;
