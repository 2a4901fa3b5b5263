-- Does lazy_bytes have an error where, and only where, it was estimated from a sample?
SELECT
    target,
    format(
        'lazy_basis is {}, but lazy_error_bytes is {}',
        coalesce(lazy_basis, 'null'),
        coalesce(CAST(lazy_error_bytes AS VARCHAR), 'null')
    ) AS reason
FROM targets
WHERE status = 'ok' AND coalesce(lazy_basis = 'sampled', false) <> (lazy_error_bytes IS NOT NULL);
