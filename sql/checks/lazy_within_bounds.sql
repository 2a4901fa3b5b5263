-- Is low <= charged <= expected <= high for what the lazy kernel would hold?
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
WHERE lazy_bytes NOT BETWEEN lazy_low_bytes AND lazy_high_bytes
UNION ALL
SELECT
    target,
    format(
        'list_lru 0x{:x}: charged {} is outside {} to {}',
        address,
        lazy_charged_bytes,
        lazy_low_bytes,
        lazy_bytes
    ) AS reason
FROM sized_list_lrus
WHERE lazy_charged_bytes NOT BETWEEN lazy_low_bytes AND lazy_bytes;
