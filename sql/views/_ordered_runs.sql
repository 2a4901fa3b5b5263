-- In which order were the runs made, and which are dated in the future?
-- The greatest position is the newest. started_at is by a clock that may have been wrong: it only decides between runs
-- with the same sequence. A date more than an hour ahead is in the future: working clocks differ by less.
CREATE VIEW _ordered_runs AS
SELECT
    *,
    row_number() OVER (ORDER BY coalesce(sequence, 0), NOT in_future, started_at, run_id) AS position
FROM (
    SELECT
        *,
        epoch(started_at) > epoch(now()) + 3600 AS in_future
    FROM runs
);
