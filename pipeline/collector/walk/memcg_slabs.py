"""Free slots of the slabs in which memcgs have structs: memory that these structs keep from being freed.

A removed memcg frees its structs, and a slab goes back to the page allocator when all of its slots are free. One struct
of a memcg that stays keeps it. Most of these slabs have objects of others, too, which may keep them as well.
"""

from collections import Counter

from drgn import sizeof

from ..access.memory import Members, byte_order, is_running, read_each
from ..status import CollectError
from . import memcg_caches, slab
from .memmap import bits, require_slub, slab_test, slab_type

# The bits of struct kmem_cache_order_objects that are the slots of a new slab, which no slab has more of.
_OO_SLOTS = (1 << 16) - 1


def free_bytes(prog, addresses):
    """Return the bytes of all free slots of the slabs that hold some objects.

    Slots that a CPU has on its free list are not free here: they are in one slab for each CPU and slab cache. Slabs of
    memcgs' own caches are not counted: their free slots are part of memcg_caches.Count.

    :param addresses: of the objects. Those that are not in a slab, such as large arrays, are skipped.
    :raises LookupError: the kernel has another slab allocator, or it is older than v4.4.
    :raises CollectError: ``bad_core``: a slab has more objects than slots, or more slots than its cache lays out.
    """
    require_slub(prog)
    page_type, struct_type = prog.type("struct page"), slab_type(prog)
    slots, used = (
        bits(prog, page_type, member.bit_offset, member.bit_field_size)
        for member in map(struct_type.member, ("objects", "inuse"))
    )
    heads = slab.heads(prog, addresses)
    objects = Counter(heads.values())
    is_slab, cache_of = slab_test(prog), Members(prog, struct_type, cache="slab_cache")
    free_slots, max_slots = Counter(), Counter()
    for head, page in read_each(prog, objects, sizeof(page_type)).items():
        if not is_slab(page):
            continue
        number = int.from_bytes(page, byte_order(prog))
        # An object of KFENCE is in a slab of one slot which has no count of objects.
        free = slots.extract(number) - max(used.extract(number), objects[head])
        if free < 0 and not is_running(prog):
            raise CollectError("bad_core", "the slab at 0x%x has more objects than slots" % head)
        cache = cache_of.decode(page).cache
        free_slots[cache] += max(0, free)
        max_slots[cache] = max(max_slots[cache], slots.extract(number))
    caches = memcg_caches.root_caches(prog, free_slots)
    fields = Members(prog, "struct kmem_cache", size="size", oo="oo.x").read_each(prog, caches)
    for cache in caches:
        if max_slots[cache] > fields[cache].oo & _OO_SLOTS and not is_running(prog):
            raise CollectError("bad_core", "a slab of the slab cache at 0x%x has %d slots" % (cache, max_slots[cache]))
    return sum(free_slots[cache] * fields[cache].size for cache in caches)
