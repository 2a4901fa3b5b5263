-- Which targets of a run have a core that another target has too?
FROM core_copies_at($run)
ORDER BY target;
