"""The memmap: one ``struct page`` for each page of memory, read in large pieces for the slabs among them."""

import re
from array import array
from collections import namedtuple

from drgn import FaultError, offsetof, sizeof
from drgn.helpers.linux.mm import page_to_virt, pfn_to_page

from ..access.memory import has_member
from ..status import CollectError
from .nodes import in_state

_READ_BYTES = 1 << 20
_PAGE_BYTES = 4096
_WORD_BYTES = 8
_POINTER_BYTES = 8
# 256 TB of pages of 4 KB.
_MOST_PAGES = 1 << 36
_SMALLEST_HOLE_BYTES = 1 << 16
# With the extensions in the objects themselves (v7.0) they are an object apart.
_MOST_STRIDE_BYTES = 1 << 13
# Low bits of the vector's address that say what it is: MEMCG_DATA_OBJCGS (v5.11) and others; before that bit 0.
_VECTOR_FLAGS = 7


class Slab(namedtuple("Slab", "address objects full vector stride")):
    """A slab: the address of its first slot, its slots, whether all are allocated for sure, and its vector.

    vector: the address, 0 for none. stride: from one element to the next, in bytes.
    """

    __slots__ = ()


class Memmap:
    """The memmap of a kernel with SLUB and a virtual memmap.

    :ivar has_vectors: whether slabs have object cgroup vectors. :ivar element_bytes: of these vectors.
    :ivar objcg_word: which word of an element is the ``struct obj_cgroup *``.
    :ivar read_bytes: of the memmap, by slabs().
    :raises LookupError: another memory model or slab allocator.
    """

    def __init__(self, prog):
        self._prog = prog
        self._start = prog["vmemmap"].value_()
        self._page_bytes = prog["PAGE_SIZE"].value_()
        self._direct_map = page_to_virt(pfn_to_page(prog, 0)).value_()
        page = prog.type("struct page")
        self._struct_bytes = sizeof(page)
        offsetof(prog.type("struct kmem_cache"), "oo")  # SLUB's
        slab = _slab_type(prog)
        self._slab_cache = offsetof(slab, "slab_cache")
        self._objects, self._inuse, self._frozen = (_Bits(slab, name) for name in ("objects", "inuse", "frozen"))
        self._mark = _SlabMark(prog, page)
        self._vector, self.element_bytes, objcg = _vector(prog, slab)
        self._stride = offsetof(slab, "stride") if has_member(slab, "stride") else None  # v7.0
        self.has_vectors = self._vector is not None
        self.objcg_word = objcg // _WORD_BYTES
        self.read_bytes = 0

    def slabs(self, caches):
        """Yield (cache, Slab) for each slab of the caches, a container of addresses of ``struct kmem_cache``.

        :raises CollectError: ``bad_core``: a slab's description cannot be.
        """
        step, column = self._struct_bytes // _WORD_BYTES, self._slab_cache // _WORD_BYTES
        for first, data in self._pieces():
            self.read_bytes += len(data)
            for i, cache in enumerate(array("Q", data)[column::step]):
                if cache in caches:
                    at = i * self._struct_bytes
                    page = int.from_bytes(data[at : at + self._struct_bytes], "little")
                    # What was a slab and is free again still names its cache.
                    if self._mark.is_on(page):
                        yield cache, self._slab(first + i, page)

    def _slab(self, pfn, page):
        vector, stride = 0, self.element_bytes
        if self.has_vectors:
            vector = page >> 8 * self._vector & (1 << 64) - 1 & ~_VECTOR_FLAGS
            if self._stride is not None and vector:
                stride = page >> 8 * self._stride & (1 << 32) - 1
                if not self.element_bytes <= stride <= _MOST_STRIDE_BYTES or stride % _WORD_BYTES:
                    raise CollectError("bad_core", "a slab's object extensions are %d bytes apart" % stride)
        objects = self._objects.of(page)
        full = self._inuse.of(page) == objects and not self._frozen.of(page)
        return Slab(self._direct_map + pfn * self._page_bytes, objects, full, vector, stride)

    def _pieces(self):
        """Yield the first page frame number and the memory of each piece of the memmap that is there."""
        most = _READ_BYTES // self._struct_bytes
        for start, end in _spans(self._prog):
            for first in range(start, end, most):
                at = self._start + first * self._struct_bytes
                size = min(most, end - first) * self._struct_bytes
                for address, data in self._present(at, at + size):
                    skip = -(address - self._start) % self._struct_bytes
                    whole = (len(data) - skip) // self._struct_bytes * self._struct_bytes
                    yield (address + skip - self._start) // self._struct_bytes, data[skip : skip + whole]

    def _present(self, start, end):
        """Yield the address and the memory of each part that there is between two addresses: memory has holes."""
        try:
            yield start, self._prog.read(start, end - start)
            return
        except FaultError:
            middle = start + (end - start) // 2 & -_PAGE_BYTES
            if middle <= start:
                return
        # A hole is wide: it is not looked for page by page.
        if end - start > _SMALLEST_HOLE_BYTES or self._is_there(start) or self._is_there(end - 1):
            for part in ((start, middle), (middle, end)):
                for present in self._present(*part):
                    yield present

    def _is_there(self, address):
        try:
            return len(self._prog.read(address, 1)) == 1
        except FaultError:
            return False


class _Bits:
    """A bit field of a struct that is read as one little-endian number."""

    def __init__(self, struct_type, name):
        member = struct_type.member(name)
        self._shift, self._mask = member.bit_offset, (1 << member.bit_field_size) - 1

    def of(self, value):
        return value >> self._shift & self._mask


class _SlabMark:
    """What tells that a page is a slab's: PG_slab among its flags, or since v6.10 (46df8e73a4a3) its page type."""

    def __init__(self, prog, page):
        mark = re.search(rb"^NUMBER\(PAGE_SLAB_MAPCOUNT_VALUE\)=(-?\d+)$", prog["VMCOREINFO"].string_(), re.MULTILINE)
        if mark:
            self._shift, self._mask = 8 * offsetof(page, "_mapcount"), (1 << 32) - 1
            self._wanted = int(mark.group(1)) & self._mask
        else:
            self._shift, self._mask = 8 * offsetof(page, "flags"), 1 << prog.constant("PG_slab").value_()
            self._wanted = self._mask

    def is_on(self, page):
        return page >> self._shift & self._mask == self._wanted


def _slab_type(prog):
    try:
        slab = prog.type("struct slab")
        if has_member(slab, "slab_cache"):
            return slab
    except LookupError:
        pass
    return prog.type("struct page")  # before v5.17 (d122019bf061)


def _vector(prog, slab):
    """Return the offset of the vector's address, the bytes of its elements, and the offset of the objcg in these."""
    if has_member(slab, "obj_exts"):  # v6.10 (21c690a349ba)
        element = prog.type("struct slabobj_ext")
        return offsetof(slab, "obj_exts"), sizeof(element), offsetof(element, "objcg")
    for member in ("memcg_data", "obj_cgroups"):  # v5.11 (bcfe06bf2622), v5.9 (286e04b8ed7a)
        if has_member(slab, member):
            return offsetof(slab, member), _POINTER_BYTES, 0
    return None, _POINTER_BYTES, 0


def _spans(prog):
    """Return pairs of the first and the one after the last page frame number of memory, ascending and apart.

    Nodes may be interleaved, and have holes.
    """
    try:
        nodes = [prog["node_data"][nid] for nid in in_state(prog, "N_ONLINE")]
    except LookupError:  # no CONFIG_NUMA
        nodes = [prog["contig_page_data"]]
    spans = []
    for start, pages in sorted((node.node_start_pfn.value_(), node.node_spanned_pages.value_()) for node in nodes):
        if start + pages > _MOST_PAGES:
            raise CollectError("bad_core", "a node spans %d pages from page %d on" % (pages, start))
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], start + pages)
        else:
            spans.append((start, start + pages))
    return spans
