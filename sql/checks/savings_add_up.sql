-- Do the three savings of each machine sum to its wasted_bytes?
SELECT
    target,
    format(
        'the savings {} + {} + {} = {} are not the wasted_bytes {}',
        s.saves_objects_bytes,
        s.saves_transpose_bytes,
        s.saves_xarray_bytes,
        s.saves_bytes,
        h.wasted_bytes
    ) AS reason
FROM host_waste AS h
JOIN lazy_savings AS s USING (target)
WHERE
    s.saves_objects_bytes + s.saves_transpose_bytes + s.saves_xarray_bytes <> s.saves_bytes
    OR s.saves_bytes <> h.wasted_bytes;
