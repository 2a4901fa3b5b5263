-- Is every superblock at most one of mounted, detached and the kernel's own?
SELECT
    target,
    format(
        'superblock 0x{:x} has {} mounts, detached {} and kernel_internal {}',
        address,
        mounts,
        detached,
        kernel_internal
    ) AS reason
FROM _stored_superblocks
WHERE
    detached AND (mounts > 0 OR kernel_internal)
    OR detached IS NOT NULL AND kernel_internal AND mounts > 0;
