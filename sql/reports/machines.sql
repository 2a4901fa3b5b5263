-- Which targets of a run show a machine that another target stands for?
FROM machines_at($run)
WHERE relation <> 'machine'
ORDER BY target;
