-- How many bytes does kmalloc() take for an eager kernel's array of pointers, one for each id?
-- Rounded up to powers of two, and to 96 and 192 but on arm64, where 128 is the least (KMALLOC_MIN_SIZE). From v4.17 on
-- an array has a header of 16 bytes (struct list_lru_memcg's rcu).
CREATE MACRO pointer_array_alloc_bytes(ids, layout, arch) AS
CASE
    WHEN arch IS DISTINCT FROM 'aarch64' AND 8 * ids + if(layout = 'array', 0, 16) BETWEEN 65 AND 96 THEN 96
    WHEN arch IS DISTINCT FROM 'aarch64' AND 8 * ids + if(layout = 'array', 0, 16) BETWEEN 129 AND 192 THEN 192
    ELSE greatest(1 << length(bin(8 * ids + if(layout = 'array', 0, 16) - 1)), if(arch = 'aarch64', 128, 8))
END;
