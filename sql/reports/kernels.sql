-- What would each kernel of a run give back, and which of them are lazy already?
FROM kernel_waste_at($run)
ORDER BY wasted_bytes DESC, kernel_release, layout;
