-- How much does each kernel waste in a run, and which are lazy?
FROM kernel_waste_at($run)
ORDER BY wasted_bytes DESC, kernel_release, layout;
