-- Is the expected figure of the lazy kernel between its bounds?
SELECT
    target,
    format(
        'list_lru 0x{:x}: lazy {} is outside {} to {}',
        address,
        lazy_bytes,
        lazy_low_bytes,
        lazy_high_bytes
    ) AS reason
FROM sized_list_lrus
WHERE lazy_bytes NOT BETWEEN lazy_low_bytes AND lazy_high_bytes;
