-- How many targets of each run ended with each status and error type?
CREATE VIEW coverage AS
SELECT
    run_id,
    status,
    error_type,
    CAST(count(*) AS BIGINT) AS targets,
    round(100.0 * count(*) / sum(count(*)) OVER (PARTITION BY run_id), 2) AS pct
FROM targets
GROUP BY run_id, status, error_type;
