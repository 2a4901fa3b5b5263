"""How much the kernel really allocated for an object, and which slab cache it lives in."""

import re
from contextlib import contextmanager

from drgn import FaultError, FindObjectFlags, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.mm import compound_head, find_vmap_area, page_size, virt_to_page
from drgn.helpers.linux.slab import slab_object_info

from ..access.memory import Members, c_string, has_member, walk_list
from ..status import CollectError
from .nodes import in_state

_MOST_CACHES = 100000
# The caches that a plain kmalloc(GFP_KERNEL) takes its objects from; not kmalloc-cg-, -rcl-, dma-kmalloc-.
_KMALLOC = re.compile(rb"kmalloc-(\d+[kM]?)")


def allocation(prog, address):
    """Return the bytes allocated for the object at an address, and its ``struct kmem_cache *`` or None.

    A slab object has its cache's ``size``, with red zones; a large kmalloc() a power of two of pages; a vmalloc()
    its pages, without the guard page.
    """
    area = find_vmap_area(prog, address)
    if area:
        return area.vm.nr_pages.value_() * prog["PAGE_SIZE"].value_(), None
    info = object_info(prog, address)
    if info:
        return info.slab_cache.size.value_(), info.slab_cache
    return page_size(compound_head(virt_to_page(prog, address))).value_(), None


def object_info(prog, address):
    """Return drgn's SlabObjectInfo of what is at an address, None where that is in no slab.

    :raises CollectError: ``bad_core``: the slab names a cache that cannot be.
    """
    try:
        return slab_object_info(prog, address)
    except ZeroDivisionError as e:
        message = "the slab cache of the object at 0x%x has a size of 0" % address
        raise CollectError("bad_core", message, "ZeroDivisionError") from e


def kmalloc_sizes(prog):
    """Return pairs (largest request, allocated bytes) of the kmalloc caches in ascending order."""
    caches = _caches(prog, name="name", object_size="object_size", size="size")
    kmalloc = [fields for _, fields in caches if _KMALLOC.fullmatch(c_string(prog, fields.name))]
    return tuple(sorted((fields.object_size, fields.size) for fields in kmalloc))


def memcg_caches(prog):
    """Return the caches that memcgs have of their own: dict of address to (address of the root cache, of the memcg).

    Before v5.9 (9855609bde03) each memcg had its own copy of a cache that it was charged for.
    """
    params = "memcg_params"
    if not has_member(prog.type("struct kmem_cache"), params + ".root_cache"):
        return {}
    paths = {"memcg": params + ".memcg", "root_cache": params + ".root_cache"}
    if has_member(prog.type("struct kmem_cache"), params + ".is_root_cache"):  # before v4.11 (9eeadc8b6e8c)
        paths["is_root_cache"] = params + ".is_root_cache"
    return {
        address: (fields.root_cache, fields.memcg)
        for address, fields in _caches(prog, **paths)
        if fields.root_cache and not getattr(fields, "is_root_cache", False)
    }


def _caches(prog, **paths):
    """Yield the address and the members of each ``struct kmem_cache``."""
    members = Members(prog, "struct kmem_cache", next="list.next", **paths)
    caches = prog["slab_caches"]
    offset = prog.type("struct kmem_cache").member("list").offset
    return walk_list(prog, members, caches.next.value_(), caches.address_of_().value_(), offset, _MOST_CACHES)


def slab_count(cache):
    """Return how many slabs a ``struct kmem_cache *`` has: kmem_cache_node.nr_slabs of CONFIG_SLUB_DEBUG.

    :raises LookupError, AttributeError: this kernel does not count them.
    """
    prog = cache.prog_
    per_node = has_member(prog.type("struct kmem_cache"), "per_node")  # v7.1
    count = 0
    for nid in in_state(prog, "N_ONLINE"):
        node = cache.per_node[nid].node if per_node else cache.node[nid]
        if node:
            count += node.nr_slabs.counter.value_()
    return count


def cache_usage(cache):
    """Return the active objects and the bytes of a slab cache, or None and None where drgn cannot tell.

    slab_cache_usage() came with drgn 0.1.0; it needs CONFIG_SLUB_DEBUG's counters.
    """
    try:
        from drgn.helpers.linux.slab import slab_cache_order, slab_cache_usage
    except ImportError:
        return None, None
    prog = cache.prog_
    try:
        with _nodes_that_have_slabs(prog):
            usage = slab_cache_usage(cache)
    except (AttributeError, LookupError, ValueError, FaultError, ValidationError):
        return None, None
    return usage.active_objs, usage.num_slabs * (prog["PAGE_SIZE"].value_() << slab_cache_order(cache))


@contextmanager
def _nodes_that_have_slabs(prog):
    """Let drgn's helpers see nr_node_ids as the online nodes need it.

    A node that is possible but not online has no kmem_cache_node, and drgn 0.3.0 follows that NULL.
    """
    count = max(in_state(prog, "N_ONLINE")) + 1

    def find(prog, name, flags, filename):
        if name != "nr_node_ids" or not flags & FindObjectFlags.VARIABLE:
            return None
        return Object(prog, "unsigned int", count)

    enabled = prog.enabled_object_finders()
    if "online nodes" not in prog.registered_object_finders():
        prog.register_object_finder("online nodes", find)
    prog.set_enabled_object_finders(["online nodes", *enabled])
    try:
        yield
    finally:
        prog.set_enabled_object_finders(enabled)
