"""Slab caches, and the bytes that the kernel allocated for an object."""

import re
from collections import namedtuple

from drgn import FaultError, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.mm import compound_head, find_vmap_area, page_size, virt_to_page
from drgn.helpers.linux.slab import slab_object_info

from ..access.memory import Members, c_string, has_member, read_each, walk_list
from ..status import CollectError
from .memmap import slab_type
from .nodes import nodes_in_state

# Bounds the walk over a broken list of slab caches.
_MAX_CACHES = 100000
# Caches that serve kmalloc(GFP_KERNEL), unlike kmalloc-cg-*, kmalloc-rcl-* and dma-kmalloc-*.
_KMALLOC_NAME = re.compile(rb"kmalloc-(\d+[kM]?)")


Allocation = namedtuple("Allocation", "allocated_bytes usable_bytes")
"""The bytes that an object takes, and those that its owner may use: a slab object can have red zones."""


def allocation(prog, address, request_bytes=0):
    """Return the bytes allocated for the object at an address, and its ``struct kmem_cache *`` or None.

    A slab object takes its cache's ``size``, red zones included. A large kmalloc() takes a power of two of pages, a
    vmalloc() its pages without the guard page.

    :param request_bytes: bytes that the kernel requested, the least that it can have allocated.
    :raises CollectError: ``bad_core``: the memory is free, or smaller than the request.
    """
    area = find_vmap_area(prog, address)
    info = None if area else object_info(prog, address)
    if area:
        size, cache = area.vm.nr_pages.value_() * prog["PAGE_SIZE"].value_(), None
    elif info:
        size, cache = info.slab_cache.size.value_(), info.slab_cache
    else:
        size, cache = page_size(compound_head(virt_to_page(prog, address))).value_(), None
    if size < request_bytes or (info and info.allocated is False):
        raise CollectError("bad_core", "a list_lru points to 0x%x, where it has no %d bytes" % (address, request_bytes))
    return size, cache


def direct_map_allocations(prog, addresses):
    """Return the Allocation of each of many kmalloc() addresses, read in bulk: dict by address."""
    if not addresses:
        return {}
    page_type = prog.type("struct page")
    # Before commit 1d798ca3f164 ("mm: make compound_head() robust") (in v4.4) a tail page has first_page instead.
    if not has_member(page_type, "compound_head"):
        return {address: _allocation_of(*allocation(prog, address)) for address in addresses}
    page_bytes, struct_bytes = prog["PAGE_SIZE"].value_(), sizeof(page_type)
    page = Members(prog, page_type, flags="flags", compound_head="compound_head")
    pages = {address: virt_to_page(prog, address).value_() for address in addresses}
    data = read_each(prog, pages.values(), struct_bytes)
    heads = {}
    for address, page_address in pages.items():
        compound_head = page.decode(data[page_address]).compound_head
        heads[address] = compound_head - 1 if compound_head & 1 else page_address
    data.update(read_each(prog, [head for head in heads.values() if head not in data], struct_bytes))
    slab = Members(prog, slab_type(prog), cache="slab_cache")
    slab_mark, head_mark = (1 << prog.constant(name).value_() for name in ("PG_slab", "PG_head"))
    flags = {head: page.decode(data[head]).flags for head in heads.values()}
    caches = {head: slab.decode(data[head]).cache for head in flags if flags[head] & slab_mark}
    cache = Members(prog, "struct kmem_cache", size="size", object_size="object_size")
    cache_sizes = {address: cache.read(prog, address) for address in set(caches.values())}
    # The first tail page has the order.
    tails = {head: head + struct_bytes for head in flags if head not in caches and flags[head] & head_mark}
    tail = Members(prog, page_type, order="compound_order")
    data = read_each(prog, tails.values(), struct_bytes)
    sizes = {}
    for address, head in heads.items():
        if head in caches:
            cache_size = cache_sizes[caches[head]]
            sizes[address] = Allocation(cache_size.size, cache_size.object_size)
        else:
            order = tail.decode(data[tails[head]]).order if head in tails else 0
            sizes[address] = Allocation(page_bytes << order, page_bytes << order)
    return sizes


def vmalloc_allocation(prog, address):
    """Return the Allocation of a vmalloc() address."""
    return _allocation_of(*allocation(prog, address))


def _allocation_of(allocated_bytes, cache):
    return Allocation(allocated_bytes, cache.object_size.value_() if cache else allocated_bytes)


def object_info(prog, address):
    """Return drgn's SlabObjectInfo of the object at an address, or None if the address is not in a slab.

    :raises CollectError: ``bad_core``: the slab cache has a size of 0.
    """
    try:
        return slab_object_info(prog, address)
    except ZeroDivisionError as e:
        message = "the slab cache of the object at 0x%x has a size of 0" % address
        raise CollectError("bad_core", message, "ZeroDivisionError") from e


def kmalloc_sizes(prog):
    """Return a pair (largest request, allocated bytes) for each kmalloc cache, in ascending order.

    :raises CollectError: ``bad_core``: there is none.
    """
    caches = _caches(prog, name="name", object_size="object_size", size="size")
    kmalloc = [fields for _, fields in caches if _KMALLOC_NAME.fullmatch(c_string(prog, fields.name))]
    if not kmalloc:
        raise CollectError("bad_core", "the list of slab caches has none that is named kmalloc-<size>")
    return tuple(sorted((fields.object_size, fields.size) for fields in kmalloc))


def memcg_caches(prog):
    """Return the slab caches of memcgs: dict of address to (address of the root cache, address of the memcg).

    Since commit 9855609bde03 ("mm: memcg/slab: use a single set of kmem_caches for all accounted allocations") (in
    v5.9) there are none. Before that, each memcg has its own copy of the caches whose objects are charged to it.
    """
    params = "memcg_params"
    if not has_member(prog.type("struct kmem_cache"), params + ".root_cache"):
        return {}
    paths = {"memcg": params + ".memcg", "root_cache": params + ".root_cache"}
    # Before commit 9eeadc8b6e8c ("slab: reorganize memcg_cache_params") (in v4.11).
    if has_member(prog.type("struct kmem_cache"), params + ".is_root_cache"):
        paths["is_root_cache"] = params + ".is_root_cache"
    return {
        address: (fields.root_cache, fields.memcg)
        for address, fields in _caches(prog, **paths)
        if fields.root_cache and not getattr(fields, "is_root_cache", False)
    }


def _caches(prog, **paths):
    """Yield the address and the decoded members of each ``struct kmem_cache``."""
    members = Members(prog, "struct kmem_cache", next="list.next", **paths)
    caches = prog["slab_caches"]
    offset = prog.type("struct kmem_cache").member("list").offset
    return walk_list(prog, members, caches.next.value_(), caches.address_of_().value_(), offset, _MAX_CACHES)


def slab_count(cache):
    """Return the number of slabs of a ``struct kmem_cache *``: kmem_cache_node.nr_slabs of CONFIG_SLUB_DEBUG.

    :raises LookupError, AttributeError: this kernel does not count them.
    """
    prog = cache.prog_
    # Since commit 5ba6bc27b1f9 ("slab: decouple pointer to barn from kmem_cache_node") (in v7.1).
    has_per_node = has_member(prog.type("struct kmem_cache"), "per_node")
    count = 0
    for nid in nodes_in_state(prog, "N_ONLINE"):
        node = cache.per_node[nid].node if has_per_node else cache.node[nid]
        if node:
            count += node.nr_slabs.counter.value_()
    return count


def cache_usage(cache):
    """Return the active objects and the bytes of a slab cache, or None and None where drgn cannot count them.

    drgn has slab_cache_usage() since 0.1.0. It needs the counters of CONFIG_SLUB_DEBUG.
    """
    try:
        from drgn.helpers.linux.slab import slab_cache_order, slab_cache_usage
    except ImportError:
        return None, None
    prog = cache.prog_
    try:
        usage = slab_cache_usage(_CacheWithoutHoles(cache))
    except (AttributeError, LookupError, ValueError, FaultError, ValidationError):
        return None, None
    return usage.active_objs, usage.num_slabs * (prog["PAGE_SIZE"].value_() << slab_cache_order(cache))


class _CacheWithoutHoles:
    """A ``struct kmem_cache *`` for slab_cache_usage(), without the nodes that have no kmem_cache_node.

    Those are not possible (a hole in the node numbers), not online, or without memory for slabs. drgn 0.3.0 takes
    node[:nr_node_ids], or per_node[:nr_node_ids], and follows the NULL pointers in it.
    """

    def __init__(self, cache):
        self._cache = cache

    def __getattr__(self, name):
        value = getattr(self._cache, name)
        return _WithoutHoles(value) if name in ("node", "per_node") else value

    def __eq__(self, other):
        return self._cache == other

    def read_(self):
        return self


class _WithoutHoles:
    """The array of a slab cache's nodes. A slice of it has only the nodes with a kmem_cache_node."""

    def __init__(self, array):
        self._array = array

    def __getitem__(self, index):
        if not isinstance(index, slice):
            return self._array[index]
        # Since commit 5ba6bc27b1f9 ("slab: decouple pointer to barn from kmem_cache_node") (in v7.1) an element has the
        # pointer as a member.
        elements = [self._array[i] for i in range(index.stop)]
        return [element for element in elements if getattr(element, "node", element)]
