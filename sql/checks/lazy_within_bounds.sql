-- Is lazy_low_bytes <= lazy_charged_bytes <= lazy_bytes <= lazy_high_bytes?
SELECT
    target,
    format(
        'list_lru 0x{:x}: lazy_bytes {} is outside {} to {}',
        address,
        lazy_bytes,
        lazy_low_bytes,
        lazy_high_bytes
    ) AS reason
FROM _sized_list_lrus
WHERE lazy_bytes NOT BETWEEN lazy_low_bytes AND lazy_high_bytes
UNION ALL
SELECT
    target,
    format(
        'list_lru 0x{:x}: lazy_charged_bytes {} is outside {} to {}',
        address,
        lazy_charged_bytes,
        lazy_low_bytes,
        lazy_bytes
    ) AS reason
FROM _sized_list_lrus
WHERE lazy_charged_bytes NOT BETWEEN lazy_low_bytes AND lazy_bytes;
