"""The memmap: one ``struct page`` for each page of memory, read in large pieces for the slabs among them."""

from array import array
from collections import namedtuple

from drgn import FaultError, offsetof, sizeof
from drgn.helpers.linux.mm import page_to_virt, pfn_to_page
from drgn.helpers.linux.nodemask import for_each_node_mask

from .memory import has_member
from .status import CollectError

_READ_BYTES = 1 << 20
_PAGE_BYTES = 4096
_WORD_BYTES = 8
_POINTER_BYTES = 8
_MOST_PAGES = 1 << 40
# Low bits of the vector's address that say what it is: MEMCG_DATA_OBJCGS (v5.11) and others; before that bit 0.
_VECTOR_FLAGS = 7


class Slab(namedtuple("Slab", "address objects vector stride")):
    """A slab: the address of its first slot, its slots, and the address and step in bytes of its vector, or 0."""

    __slots__ = ()


class Memmap:
    """The memmap of a kernel with SLUB and a virtual memmap.

    :ivar has_vectors: whether slabs have object cgroup vectors. :ivar objcg_word: which word of a vector's element is
        the ``struct obj_cgroup *``. :ivar read_bytes: of the memmap, by slabs().
    :raises LookupError: another memory model or slab allocator.
    """

    def __init__(self, prog):
        self._prog = prog
        self._start = prog["vmemmap"].value_()
        self._page_bytes = prog["PAGE_SIZE"].value_()
        self._direct_map = page_to_virt(pfn_to_page(prog, 0)).value_()
        self._struct_bytes = sizeof(prog.type("struct page"))
        slab = _slab_type(prog)
        self._slab_cache = offsetof(slab, "slab_cache")
        # Bits of a word; drgn has the offset of a bit field within the struct.
        objects = slab.member("objects")
        self._objects_shift, self._objects_mask = objects.bit_offset, (1 << objects.bit_field_size) - 1
        self._vector, self._element_bytes, objcg = _vector(prog, slab)
        self._stride = offsetof(slab, "stride") if has_member(slab, "stride") else None  # v7.0
        self.has_vectors = self._vector is not None
        self.objcg_word = objcg // _WORD_BYTES
        self.read_bytes = 0

    def slabs(self, caches):
        """Yield (cache, Slab) for each slab of the caches, a container of addresses of ``struct kmem_cache``."""
        step, column = self._struct_bytes // _WORD_BYTES, self._slab_cache // _WORD_BYTES
        for first, data in self._pieces():
            self.read_bytes += len(data)
            for i, cache in enumerate(array("Q", data)[column::step]):
                if cache in caches:
                    yield cache, self._slab(first + i, data, i * self._struct_bytes)

    def _slab(self, pfn, data, at):
        page = int.from_bytes(data[at : at + self._struct_bytes], "little")

        def word(offset, size):
            return page >> 8 * offset & (1 << 8 * size) - 1

        vector, stride = 0, self._element_bytes
        if self.has_vectors:
            vector = word(self._vector, _POINTER_BYTES) & ~_VECTOR_FLAGS
            if self._stride is not None:
                stride = word(self._stride, 4)
        objects = page >> self._objects_shift & self._objects_mask
        return Slab(self._direct_map + pfn * self._page_bytes, objects, vector, stride)

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
        if self._is_there(start) or self._is_there(end - 1):
            for part in ((start, middle), (middle, end)):
                for present in self._present(*part):
                    yield present

    def _is_there(self, address):
        try:
            return bool(self._prog.read(address, 1))
        except FaultError:
            return False


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
    """Yield the first page frame number of each online node, and the one after its last; nodes may have holes."""
    try:
        nodes = [prog["node_data"][nid] for nid in for_each_node_mask(prog["node_states"][prog.constant("N_ONLINE")])]
    except LookupError:  # no CONFIG_NUMA
        nodes = [prog["contig_page_data"]]
    for node in nodes:
        start, pages = node.node_start_pfn.value_(), node.node_spanned_pages.value_()
        if start + pages > _MOST_PAGES:
            raise CollectError("bad_core", "a node spans %d pages from page %d on" % (pages, start))
        yield start, start + pages
