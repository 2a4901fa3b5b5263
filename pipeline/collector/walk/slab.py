"""Slab caches, and the bytes that the kernel allocated for an object."""

import re
import struct
from collections import namedtuple

from drgn import Object, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.mm import (
    compound_head,
    find_vmap_area,
    in_direct_map,
    page_size,
    page_to_virt,
    pfn_to_page,
    virt_to_page,
)
from drgn.helpers.linux.slab import slab_object_info

from ..access.memory import (
    UNREADABLE,
    Members,
    c_strings,
    has_member,
    is_running,
    read_each,
    struct_prefix,
    walk_list,
)
from ..status import CollectError
from .memmap import compound_order_location, slab_test, slab_type
from .nodes import nodes_in_state

# Bounds the walk over a broken list of slab caches. Before v5.9 each of up to 65,535 memcgs has one of its own for each
# root cache that it uses: 15 on most machines. 64 for each is the bound.
_MAX_CACHES = 1 << 22
# Bounds the memory for one bulk read of slab caches, of about 500 bytes each.
_CACHES_PER_READ = 1 << 14
# Caches that serve kmalloc(GFP_KERNEL), unlike kmalloc-cg-*, kmalloc-rcl-* and dma-kmalloc-*.
_KMALLOC_NAME = re.compile(rb"kmalloc-(\d+[kM]?)")
# kmalloc() and vmalloc() addresses never share a region of 1 GB.
_REGION_SHIFT = 30
# Objects that are measured of many that have one size.
_SAMPLES = 64
_WORD_BYTES = 8
# The low byte has the order.
_ORDER_MASK = (1 << 8) - 1
# The memmap is mapped in pages of this size or larger.
_PIECE_BYTES = 4096
_NO_SIZE = "the slab cache of the object at 0x%x has a size of 0"


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
    # Before commit 1d798ca3f164 ("mm: make compound_head() robust") (in v4.4) a tail page has first_page instead.
    if _compound_member(prog) is None:
        return {address: _allocation_of(*allocation(prog, address)) for address in addresses}
    pages, structs = _pages(prog, addresses), _PageStructs(prog)
    heads = _heads(prog, structs, set(pages.values()))
    allocations = _head_allocations(prog, structs, set(heads.values()))
    return {address: allocations[heads[page]] for address, page in pages.items()}


def find_slots(prog, addresses):
    """Return for each of many addresses that is in a slab its slab cache and its offset in the slot: dict by address.

    A red zone in front of the object is part of the slot.

    :raises CollectError: ``bad_core``: a slab cache has a size of 0.
    """
    allocators, structs = Allocators(prog), _PageStructs(prog)
    addresses = [address for address in addresses if allocators.of(address) == "kmalloc"]
    if not addresses:
        return {}
    pages = _pages(prog, addresses)
    heads = _heads(prog, structs, set(pages.values()))
    caches_by_head = _slab_caches(prog, structs, set(heads.values()))
    fields = _read_caches(prog, set(caches_by_head.values()))
    struct_bytes, page_bytes = sizeof(prog.type("struct page")), prog["PAGE_SIZE"].value_()
    slots = {}
    for address, page in pages.items():
        head = heads[page]
        if head in caches_by_head:
            cache = caches_by_head[head]
            if not fields[cache].size:
                raise CollectError("bad_core", _NO_SIZE % address)
            offset = (page - head) // struct_bytes * page_bytes + address % page_bytes
            slots[address] = cache, offset % fields[cache].size
    return slots


def heads(prog, addresses):
    """Return the head of the compound page, or the page, of each of many addresses from kmalloc(): dict by address.

    Addresses from vmalloc() are left out.

    :raises LookupError: before commit 1d798ca3f164 ("mm: make compound_head() robust") (in v4.4).
    """
    allocators = Allocators(prog)
    addresses = [address for address in addresses if allocators.of(address) == "kmalloc"]
    if not addresses:
        return {}
    if _compound_member(prog) is None:
        raise LookupError("struct page has no member compound_head")
    pages = _pages(prog, addresses)
    heads_by_page = _heads(prog, _PageStructs(prog), set(pages.values()))
    return {address: heads_by_page[page] for address, page in pages.items()}


def allocated_bytes(prog, addresses, request_bytes):
    """Return the bytes of each of many kmalloc() or vmalloc() addresses: dict by address.

    A vmalloc() takes many reads, so of these all are measured only if the samples differ.

    :param request_bytes: the least that the kernel requested for each.
    :raises CollectError: ``bad_core``: one is smaller.
    """
    allocators = Allocators(prog)
    from_vmalloc = [address for address in addresses if allocators.of(address) == "vmalloc"]
    allocations = direct_map_allocations(prog, set(addresses).difference(from_vmalloc))
    measured = {address: vmalloc_allocation(prog, address) for address in samples(from_vmalloc)}
    if len(set(measured.values())) > 1:
        measured = {address: vmalloc_allocation(prog, address) for address in from_vmalloc}
    allocations.update((address, measured.get(address, measured[from_vmalloc[0]])) for address in from_vmalloc)
    _check_requests(allocations, request_bytes)
    return {address: allocations[address].allocated_bytes for address in addresses}


def uniform_bytes(prog, kinds):
    """Return for each kind of kmalloc() objects the bytes that each of them has, 0 without any; measures samples.

    :param kinds: pairs (addresses, bytes that the kernel requested for each).
    :raises CollectError: ``bad_core``: the samples of a kind differ, or one is smaller.
    """
    samples_by_kind = [samples(addresses) for addresses, _ in kinds]
    allocations = direct_map_allocations(prog, set().union(*samples_by_kind))
    bytes_by_kind = []
    for addresses, (_, request_bytes) in zip(samples_by_kind, kinds):
        of_kind = {address: allocations[address] for address in addresses}
        _check_requests(of_kind, request_bytes)
        sizes = {allocation.allocated_bytes for allocation in of_kind.values()}
        if len(sizes) > 1:
            message = "objects of one kind, the first at 0x%x, have %s bytes"
            raise CollectError("bad_core", message % (addresses[0], " and ".join(map(str, sorted(sizes)))))
        bytes_by_kind.append(max(sizes, default=0))
    return bytes_by_kind


def _check_requests(allocations, request_bytes):
    for address, each in allocations.items():
        if each.usable_bytes < request_bytes:
            message = "the allocation at 0x%x has %d bytes, but the kernel requested %d"
            raise CollectError("bad_core", message % (address, each.usable_bytes, request_bytes))


def samples(addresses):
    """Return the first, the last, and at most 64 others at even distances of a list of addresses."""
    return addresses[:: len(addresses) // _SAMPLES + 1] + addresses[1:][-1:]


class Allocators:
    """Tells kmalloc() addresses from vmalloc() addresses."""

    def __init__(self, prog):
        self._prog = prog
        self._names = {}

    def of(self, address):
        """Return ``kmalloc`` or ``vmalloc``."""
        region = address >> _REGION_SHIFT
        if region not in self._names:
            self._names[region] = "kmalloc" if in_direct_map(self._prog, address) else "vmalloc"
        return self._names[region]


def _compound_member(prog):
    """Return the member of struct page by which a tail page leads to its head, or None."""
    # The newer name came with commit d50569612c29 ("mm: rename the 'compound_head' field in the 'struct page' to
    # 'compound_info'") (in v7.1).
    names = ("compound_info", "compound_head")
    return next((name for name in names if has_member(prog.type("struct page"), name)), None)


def _pages(prog, addresses):
    """Return the address of the ``struct page`` of each address in the direct map: dict by address.

    drgn's virt_to_page() takes 5 us. Where the memmap is virtual, it is one array, and the direct map is linear.
    """
    try:
        memmap = prog["vmemmap"].value_()
    except LookupError:
        return {address: virt_to_page(prog, address).value_() for address in addresses}
    direct_map = page_to_virt(pfn_to_page(prog, 0)).value_()
    page_bytes, struct_bytes = prog["PAGE_SIZE"].value_(), sizeof(prog.type("struct page"))
    pages = {address: memmap + (address - direct_map) // page_bytes * struct_bytes for address in addresses}
    for address in (min(pages), max(pages)):
        if pages[address] != virt_to_page(prog, address).value_():
            raise CollectError("bad_core", "0x%x is not in the direct map" % address)
    return pages


class _PageStructs:
    """The memmap around ``struct page``s that are asked for.

    A whole page of the memmap is read at a time: it mostly has the head of a compound page, too, and its order.
    """

    def __init__(self, prog):
        self._prog = prog
        self._word = struct.Struct(struct_prefix(prog) + "Q")
        self._pieces = {}

    def read(self, addresses, size):
        """Return the bytes at each of many addresses: dict by address."""
        starts = {place & -_PIECE_BYTES for address in addresses for place in (address, address + size - 1)}
        self._pieces.update(read_each(self._prog, starts - self._pieces.keys(), _PIECE_BYTES))
        data = {}
        for address in addresses:
            start = address & -_PIECE_BYTES
            data[address] = self._pieces[start][address - start : address - start + size]
            if len(data[address]) < size:
                data[address] += self._pieces[start + _PIECE_BYTES][: size - len(data[address])]
        return data

    def words(self, addresses):
        """Return the 64-bit word at each of many addresses: dict by address."""
        return {address: self._word.unpack(data)[0] for address, data in self.read(addresses, _WORD_BYTES).items()}


def _heads(prog, structs, pages):
    """Return the head of each ``struct page``'s compound page, the page itself without one: dict by address."""
    member = _compound_member(prog)
    if member is None:
        return {page: compound_head(Object(prog, "struct page *", page)).value_() for page in pages}
    offset = offsetof(prog.type("struct page"), member)
    links = structs.words([page + offset for page in pages])
    has_mask = member == "compound_info" and _has_compound_mask(prog)
    heads = {}
    for page in pages:
        link = links[page + offset]
        heads[page] = page if not link & 1 else page & link if has_mask else link - 1
    return heads


def _has_compound_mask(prog):
    """Whether compound_info masks the address of a tail page to that of its head: compound_info_has_mask().

    Since commit 8c846c879e22 ("mm: rework compound_head() for power-of-2 sizeof(struct page)") (in v7.1).
    """
    struct_bytes = sizeof(prog.type("struct page"))
    return not struct_bytes & struct_bytes - 1 and has_member(prog.type("struct zone"), "vmemmap_tails")


def _slab_caches(prog, structs, heads):
    """Return the ``struct kmem_cache`` of each head page that is a slab's: dict by address."""
    is_slab = slab_test(prog)
    slab = Members(prog, slab_type(prog), cache="slab_cache")
    data = structs.read(heads, sizeof(prog.type("struct page")))
    return {head: slab.decode(data[head]).cache for head in heads if is_slab(data[head])}


def _read_caches(prog, addresses):
    """Return the sizes of each ``struct kmem_cache``: dict by address."""
    return Members(prog, "struct kmem_cache", size="size", object_size="object_size").read_each(prog, addresses)


def _head_allocations(prog, structs, heads):
    """Return the Allocation of an object in each slab, or of the pages of each large kmalloc(): dict by head page."""
    caches_by_head = _slab_caches(prog, structs, heads)
    fields = _read_caches(prog, set(caches_by_head.values()))
    flags_offset = offsetof(prog.type("struct page"), "flags")
    head_mark = 1 << prog.constant("PG_head").value_()
    pages = [head for head in heads if head not in caches_by_head]
    flags = structs.words([page + flags_offset for page in pages])
    orders = _compound_orders(prog, structs, [page for page in pages if flags[page + flags_offset] & head_mark])
    page_bytes = prog["PAGE_SIZE"].value_()
    allocations = {page: Allocation(*[page_bytes << orders.get(page, 0)] * 2) for page in pages}
    for head, cache in caches_by_head.items():
        allocations[head] = Allocation(fields[cache].size, fields[cache].object_size)
    return allocations


def _compound_orders(prog, structs, heads):
    """Return the order of each compound page: dict by head page."""
    word, shift = compound_order_location(prog)
    orders = structs.words([head + _WORD_BYTES * word for head in heads])
    return {head: orders[head + _WORD_BYTES * word] >> shift & _ORDER_MASK for head in heads}


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
        raise CollectError("bad_core", _NO_SIZE % address, "ZeroDivisionError") from e


def kmalloc_sizes(prog):
    """Return a pair (largest request, allocated bytes) for each kmalloc cache, in ascending order.

    They are read once: each kernel keeps these caches.

    :raises CollectError: ``bad_core``: there is none.
    """
    sizes = prog.cache.get(kmalloc_sizes)
    if sizes is None:
        all_caches = [fields for _, fields in caches(prog, name="name", object_size="object_size", size="size")]
        names = c_strings(prog, {fields.name for fields in all_caches})
        kmalloc = [fields for fields in all_caches if _KMALLOC_NAME.fullmatch(names[fields.name])]
        if not kmalloc:
            raise CollectError("bad_core", "the list of slab caches has none that is named kmalloc-<size>")
        sizes = tuple(sorted((fields.object_size, fields.size) for fields in kmalloc))
        prog.cache[kmalloc_sizes] = sizes
    return sizes


def caches(prog, **paths):
    """Yield the address and the decoded members of each ``struct kmem_cache``.

    The list of a core is walked once, cache by cache. A running kernel frees caches with their memcgs, so its list is
    walked each time.
    """
    members = Members(prog, "struct kmem_cache", next="list.next", **paths)
    if is_running(prog):
        for address, fields in _walk_caches(prog, members):
            yield address, fields
        return
    addresses = prog.cache.get(caches)
    if addresses is None:
        links = Members(prog, "struct kmem_cache", next="list.next")
        addresses = prog.cache[caches] = [address for address, _ in _walk_caches(prog, links)]
    for i in range(0, len(addresses), _CACHES_PER_READ):
        batch = addresses[i : i + _CACHES_PER_READ]
        data = read_each(prog, batch, members.end)
        for address in batch:
            yield address, members.decode(data[address])


def _walk_caches(prog, members):
    head = prog["slab_caches"]
    offset = prog.type("struct kmem_cache").member("list").offset
    return walk_list(prog, members, head.next.value_(), head.address_of_().value_(), offset, _MAX_CACHES)


def count_slabs(prog, addresses):
    """Return the number of slabs of each of many slab caches: kmem_cache_node.nr_slabs of CONFIG_SLUB_DEBUG.

    :param addresses: of ``struct kmem_cache``.
    :return: dict by address.
    :raises LookupError: this kernel does not count them.
    """
    # Since commit 5ba6bc27b1f9 ("slab: decouple pointer to barn from kmem_cache_node") (in v7.1).
    path = "per_node[%d].node" if has_member(prog.type("struct kmem_cache"), "per_node") else "node[%d]"
    nids = nodes_in_state(prog, "N_ONLINE")
    caches = Members(prog, "struct kmem_cache", **{"node%d" % nid: path % nid for nid in nids})
    nodes = {address: [node for node in row if node] for address, row in caches.read_each(prog, addresses).items()}
    count = Members(prog, "struct kmem_cache_node", slabs="nr_slabs.counter")
    counts = count.read_each(prog, (node for row in nodes.values() for node in row))
    return {address: sum(counts[node].slabs for node in row) for address, row in nodes.items()}


def cache_usage(cache, memory_bytes):
    """Return the active objects and the bytes of a slab cache, or None and None where drgn cannot count them.

    drgn has slab_cache_usage() since 0.1.0. It needs the counters of CONFIG_SLUB_DEBUG; damaged ones can count more
    slabs than memory has room for.

    :param memory_bytes: of the machine.
    """
    try:
        from drgn.helpers.linux.slab import slab_cache_order, slab_cache_usage
    except ImportError:
        return None, None
    prog = cache.prog_
    try:
        usage = slab_cache_usage(_CacheWithoutHoles(cache))
    except (*UNREADABLE, ValidationError):
        return None, None
    cache_bytes = usage.num_slabs * (prog["PAGE_SIZE"].value_() << slab_cache_order(cache))
    counts = (usage.active_objs, usage.active_objs * cache.size.value_()), (cache_bytes, cache_bytes)
    return tuple(count if count_bytes <= memory_bytes else None for count, count_bytes in counts)


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
