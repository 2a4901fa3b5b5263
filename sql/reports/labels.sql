-- In which racks, roles or other labels is the waste of a run?
FROM label_waste_at($run)
ORDER BY label, wasted_bytes DESC, value;
