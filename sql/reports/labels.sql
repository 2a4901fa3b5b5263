-- How much do the targets with each label, such as a rack or a role, waste in a run?
FROM label_waste_at($run)
ORDER BY label, wasted_bytes DESC, value;
