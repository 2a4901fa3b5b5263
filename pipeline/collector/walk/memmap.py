"""The memmap: one ``struct page`` for each page of memory, read in large pieces to find slabs."""

import re
from collections import namedtuple

from drgn import FaultError, offsetof, sizeof
from drgn.helpers.linux.mm import page_to_virt, pfn_to_page

from ..access.memory import WordFinder, byte_order, check_range, has_member, words
from ..status import CollectError
from .nodes import nodes_in_state

_READ_BYTES = 1 << 20
_PAGE_BYTES = 4096
_WORD_BYTES = 8
_POINTER_BYTES = 8
# Bounds a broken node: 256 TB in pages of 4 KB.
_MAX_PAGES = 1 << 36
# Holes are wider; smaller ranges are not searched for readable pages.
_MIN_HOLE_BYTES = 1 << 16
# Bounds the stride: since v7.0 an object can contain its own extension, so that the stride is the size of an object.
_MAX_STRIDE_BYTES = 1 << 13
# Low bits of the vector's address that mark its type: MEMCG_DATA_OBJCGS (v5.11) and others, before that bit 0.
_VECTOR_FLAGS = 7


class Slab(namedtuple("Slab", "address objects is_full vector stride")):
    """A slab.

    address: of its first slot. objects: number of slots. is_full: whether all are certainly allocated. vector: address
    of the object cgroup vector, 0 without one. stride: bytes from one element of the vector to the next.
    """

    __slots__ = ()


class Memmap:
    """The memmap of a kernel with SLUB and a virtual memmap.

    :ivar has_vectors: whether slabs have object cgroup vectors.
    :ivar element_bytes: size of a vector's element.
    :ivar objcg_word: index of the word in an element that is the ``struct obj_cgroup *``.
    :ivar read_bytes: bytes of the memmap that slabs() has read.
    :raises LookupError: the kernel has another memory model or slab allocator.
    """

    def __init__(self, prog):
        self._prog = prog
        self._start = prog["vmemmap"].value_()
        self._page_bytes = prog["PAGE_SIZE"].value_()
        self._direct_map = page_to_virt(pfn_to_page(prog, 0)).value_()
        page = prog.type("struct page")
        self._struct_bytes = sizeof(page)
        require_slub(prog)
        slab = slab_type(prog)
        self._slab_cache = offsetof(slab, "slab_cache")
        self._byte_order = byte_order(prog)
        self._objects, self._inuse, self._frozen = (
            bits(prog, page, slab.member(name).bit_offset, slab.member(name).bit_field_size)
            for name in ("objects", "inuse", "frozen")
        )
        mark_offset, mark_bytes, mark_mask, self._mark_value = _slab_mark(prog, page)
        self._mark = bits(prog, page, 8 * mark_offset, 8 * mark_bytes, mark_mask)
        vector_offset, self.element_bytes, objcg_offset = _vector_layout(prog, slab)
        self.has_vectors = vector_offset is not None
        if self.has_vectors:
            self._vector = bits(prog, page, 8 * vector_offset, 64, ~_VECTOR_FLAGS)
        # Since commit 7a8e71bc619d ("mm/slab: use stride to access slabobj_ext") (in v7.0).
        has_stride = has_member(slab, "stride")
        self._stride = bits(prog, page, 8 * offsetof(slab, "stride"), 32) if has_stride else None
        self.objcg_word = objcg_offset // _WORD_BYTES
        self.read_bytes = 0

    def slabs(self, caches, dying_pages=None, spans=None):
        """Yield (cache, Slab) for each slab of the caches.

        :param caches: addresses of ``struct kmem_cache``.
        :param dying_pages: DyingMemcgPages, which count their pages in each piece, or None.
        :param spans: the page frame numbers to read, pairs (start, end), or None for all. They are taken one by one, so
            that a generator can end the reading.
        :raises CollectError: ``bad_core``: a slab has an impossible stride.
        """
        step, column = self._struct_bytes // _WORD_BYTES, self._slab_cache // _WORD_BYTES
        finder = WordFinder(caches)
        for first, data in self._pieces(pfn_spans(self._prog) if spans is None else spans):
            self.read_bytes += len(data)
            page_words = words(self._prog, data)
            if dying_pages:
                dying_pages.add(first, page_words)
            page_caches = page_words[column::step]
            for i in finder.indexes(page_caches):
                offset = i * self._struct_bytes
                page = int.from_bytes(data[offset : offset + self._struct_bytes], self._byte_order)
                # The page of a freed slab still has the pointer to its cache.
                if self._mark.extract(page) == self._mark_value:
                    yield page_caches[i], self._slab(first + i, page)

    def _slab(self, pfn, page):
        vector, stride = 0, self.element_bytes
        if self.has_vectors:
            vector = self._vector.extract(page)
            if self._stride is not None and vector:
                stride = self._stride.extract(page)
                if not self.element_bytes <= stride <= _MAX_STRIDE_BYTES or stride % _WORD_BYTES:
                    raise CollectError("bad_core", "a slab has its object extensions at a stride of %d bytes" % stride)
        objects = self._objects.extract(page)
        is_full = self._inuse.extract(page) == objects and not self._frozen.extract(page)
        return Slab(self._direct_map + pfn * self._page_bytes, objects, is_full, vector, stride)

    def _pieces(self, spans):
        """Yield the first page frame number and the data of each readable piece of the memmap."""
        max_pages = _READ_BYTES // self._struct_bytes
        for start, end in spans:
            for pfn in range(start, end, max_pages):
                piece_start = self._start + pfn * self._struct_bytes
                piece_bytes = min(max_pages, end - pfn) * self._struct_bytes
                for address, data in self._readable_parts(piece_start, piece_start + piece_bytes):
                    skip = -(address - self._start) % self._struct_bytes
                    size = (len(data) - skip) // self._struct_bytes * self._struct_bytes
                    yield (address + skip - self._start) // self._struct_bytes, data[skip : skip + size]

    def _readable_parts(self, start, end):
        """Yield the address and the data of each readable part between two addresses: the memmap has holes."""
        try:
            yield start, self._prog.read(start, end - start)
            return
        except FaultError:
            middle = start + (end - start) // 2 & -_PAGE_BYTES
            if middle <= start:
                return
        if end - start > _MIN_HOLE_BYTES or self._is_readable(start) or self._is_readable(end - 1):
            for half in ((start, middle), (middle, end)):
                for part in self._readable_parts(*half):
                    yield part

    def _is_readable(self, address):
        try:
            return len(self._prog.read(address, 1)) == 1
        except FaultError:
            return False


class Bits(namedtuple("Bits", "shift mask")):
    """Bits of a struct that was decoded as one number."""

    __slots__ = ()

    def extract(self, value):
        return value >> self.shift & self.mask


def bits(prog, struct_type, offset, size, mask=-1):
    """Return the Bits of a member of a struct; offset and size are in bits, as drgn counts them."""
    # In big-endian memory drgn counts from the most significant bit.
    shift = offset if byte_order(prog) == "little" else 8 * sizeof(struct_type) - offset - size
    return Bits(shift, (1 << size) - 1 & mask)


def _slab_mark(prog, page):
    """Return the mark of a slab's page: offset and bytes of its member of struct page, its mask and its value.

    Since commit 46df8e73a4a3 ("mm: free up PG_slab") (in v6.10) it is the page type, before that the flag PG_slab.
    """
    page_type = re.search(rb"^NUMBER\(PAGE_SLAB_MAPCOUNT_VALUE\)=(-?\d+)$", prog["VMCOREINFO"].string_(), re.MULTILINE)
    if page_type:
        mask = (1 << 32) - 1
        return offsetof(page, "_mapcount"), 4, mask, int(page_type.group(1)) & mask
    flag = 1 << prog.constant("PG_slab").value_()
    return offsetof(page, "flags"), 8, flag, flag


def compound_order_location(prog):
    """Return where a compound page has its order: the word behind its first ``struct page``, and the bit there."""
    page = prog.type("struct page")
    try:
        folio = prog.type("struct folio")
    except LookupError:
        folio = page
    if has_member(folio, "_folio_order"):
        # Since commit 379708ffde1b ("mm: add the first tail page to struct folio") (in v6.1).
        offset, order = offsetof(folio, "_folio_order"), folio.member("_folio_order")
    elif has_member(page, "compound_order"):
        # Before. It is a byte here, but an int in v4.15 and older.
        offset, order = sizeof(page) + offsetof(page, "compound_order"), page.member("compound_order")
    else:
        # Since commit ebc1baf5c9b4 ("mm: free up a word in the first tail page") (in v6.6).
        return offsetof(folio, "_flags_1") // _WORD_BYTES, 0
    shift = 8 * (offset % _WORD_BYTES)
    if byte_order(prog) == "big":
        shift = 8 * (_WORD_BYTES - sizeof(order.type)) - shift
    return offset // _WORD_BYTES, shift


def slab_test(prog):
    """Return a function that tells from the bytes of a ``struct page`` whether it is a slab's first page."""
    offset, size, mask, value = _slab_mark(prog, prog.type("struct page"))
    order = byte_order(prog)
    return lambda page: int.from_bytes(page[offset : offset + size], order) & mask == value


def slab_type(prog):
    """Return the type of the struct with a slab's members: struct slab or struct page."""
    try:
        slab = prog.type("struct slab")
        if has_member(slab, "slab_cache"):
            return slab
    except LookupError:
        pass
    # Before commit d122019bf061 ("mm: Split slab into its own type") (in v5.17).
    return prog.type("struct page")


def _vector_layout(prog, slab):
    """Return the offset of the vector's address in a slab, the size of an element, and the offset of objcg in it.

    The member is obj_cgroups since commit 286e04b8ed7a ("mm: memcg/slab: allocate obj_cgroups for non-root slab pages")
    (in v5.9), memcg_data since commit bcfe06bf2622 ("mm: memcontrol: Use helpers to read page's memcg data") (in v5.11)
    and obj_exts since commit 21c690a349ba ("mm: introduce slabobj_ext to support slab object extensions") (in v6.10).
    Without any the offset is None.
    """
    if has_member(slab, "obj_exts"):
        element = prog.type("struct slabobj_ext")
        return offsetof(slab, "obj_exts"), sizeof(element), offsetof(element, "objcg")
    for member in ("memcg_data", "obj_cgroups"):
        if has_member(slab, member):
            return offsetof(slab, member), _POINTER_BYTES, 0
    return None, _POINTER_BYTES, 0


def require_slub(prog):
    """Check that the slab allocator is SLUB.

    :raises LookupError: it is another.
    """
    offsetof(prog.type("struct kmem_cache"), "oo")


def total_pages(prog):
    """Return the pages of memory that the kernel manages, ``totalram_pages()``.

    :raises CollectError: ``bad_core``: the nodes that are online do not have so many.
    """
    try:
        pages = prog["_totalram_pages"].counter.value_()
    except LookupError:
        # Before commit ca79b0c211af ("mm: convert totalram_pages and totalhigh_pages variables to atomic") (in v5.0).
        pages = prog["totalram_pages"].value_()
    present_pages = sum(node.node_present_pages.value_() for node in _nodes(prog))
    return check_range(1, pages, present_pages, "the kernel's number of pages, of those of its nodes,")


def _nodes(prog):
    """Return the ``struct pglist_data`` of each node that is online."""
    try:
        return [prog["node_data"][nid] for nid in nodes_in_state(prog, "N_ONLINE")]
    except LookupError:  # Without CONFIG_NUMA.
        return [prog["contig_page_data"]]


def pfn_spans(prog):
    """Return ranges of page frame numbers that contain all memory: pairs (start, end), ascending and disjoint.

    Nodes can be interleaved and have holes.
    """
    spans = []
    for start, pages in sorted(
        (node.node_start_pfn.value_(), node.node_spanned_pages.value_()) for node in _nodes(prog)
    ):
        if start + pages > _MAX_PAGES:
            raise CollectError("bad_core", "a NUMA node spans %d pages from page frame %d" % (pages, start))
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], start + pages)
        else:
            spans.append((start, start + pages))
    return spans
