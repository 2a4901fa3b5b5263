-- Which machines of a run waste most?
FROM host_waste_at($run)
ORDER BY rank, target;
