-- How many bytes does kmalloc() allocate for an eager kernel's array of one pointer for each id?
-- kmalloc() rounds up to a power of two, or to 96 or 192. arm64 has neither of these, and a minimum of 128
-- (KMALLOC_MIN_SIZE). Since commit 0c7c1bed7e13 ("mm: make counting of list_lru_one::nr_items lockless") (in v4.17) an
-- array has a header of 16 bytes: the rcu of struct list_lru_memcg.
CREATE MACRO _pointer_array_alloc_bytes(ids, layout, arch) AS
CASE
    WHEN arch IS DISTINCT FROM 'aarch64' AND 8 * ids + if(layout = 'array', 0, 16) BETWEEN 65 AND 96 THEN 96
    WHEN arch IS DISTINCT FROM 'aarch64' AND 8 * ids + if(layout = 'array', 0, 16) BETWEEN 129 AND 192 THEN 192
    ELSE greatest(1 << length(bin(8 * ids + if(layout = 'array', 0, 16) - 1)), if(arch = 'aarch64', 128, 8))
END;
