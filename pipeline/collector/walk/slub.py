"""Slabs, slots and free slots of many slab caches of SLUB at once, before v5.9.

drgn counts one cache after the other, slab by slab, and a kernel with caches for each memcg has 10,000s of them. The
kernel counts slabs and slots itself. Free slots are in slabs on the lists of nodes and CPUs, which are walked together,
one step of each list in every read, and on the free lists of CPUs, each of which is in one slab.
"""

import struct
from collections import Counter, defaultdict, namedtuple

from drgn import Object, offsetof, sizeof
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr

from ..access.memory import Members, byte_order, has_member, is_running, read_each, struct_prefix, words
from ..status import CollectError
from .memmap import bits
from .nodes import nr_node_ids

_POINTER_BYTES = 8
_ADDRESS_MASK = (1 << 64) - 1
# kmem_cache.oo is the order of a slab, above the number of its slots.
_ORDER_SHIFT = 16
_SLOTS_MASK = (1 << _ORDER_SHIFT) - 1
# Bounds the memory for one bulk read: a slab has 4 to 32 KB.
_SLABS_PER_READ = 256
# Bounds the free lists of CPUs that are read, with their slabs: 4 seconds, 64 to 512 MB. Of more, a sample is read.
_MAX_FREE_LISTS = 1 << 14


class Usage(namedtuple("Usage", "nodes slabs slots free_slots slab_bytes slab_slots")):
    """What a slab cache has.

    nodes: addresses of its kmem_cache_nodes. slabs, slots, free_slots: in all. slab_bytes, slab_slots: of one slab.
    """

    __slots__ = ()


class _List(namedtuple("_List", "cache page end link_offset")):
    """The rest of a list of slabs.

    page: the next ``struct page``. end: what follows the last one. link_offset: of the member that links point to.
    """

    __slots__ = ()


def usage(prog, caches):
    """Return the Usage of slab caches, and of how many free lists of CPUs one was read.

    :param caches: addresses of ``struct kmem_cache``.
    :return: dict of address to Usage, and a number, 1 if all free lists were read.
    :raises LookupError: the kernel has another slab allocator, or no CONFIG_SLUB_DEBUG, which counts slabs.
    :raises CollectError: ``bad_core``: a list is broken.
    """
    return _Reader(prog, caches).run()


class _Reader:
    def __init__(self, prog, caches):
        self.prog = prog
        cache_type, page_type = prog.type("struct kmem_cache"), prog.type("struct page")
        paths = {"cpu_slab": "cpu_slab", "link_offset": "offset", "oo": "oo.x"}
        if has_member(cache_type, "random"):  # CONFIG_SLAB_FREELIST_HARDENED
            paths["random"] = "random"
        members = Members(prog, cache_type, **paths)
        start = offsetof(cache_type, "node")
        end = start + _POINTER_BYTES * nr_node_ids(prog)
        data = read_each(prog, caches, max(members.end, end))
        self.caches = {cache: members.decode(data[cache]) for cache in data}
        self.nodes = {cache: [node for node in words(prog, data[cache][start:end]) if node] for cache in data}
        # How the links of free lists are coded, until one shows it.
        self.codings = (_coding_of_v5_7, _coding_before_v5_7) if "random" in paths else (_no_coding,)
        self.word = struct.Struct(struct_prefix(prog) + "Q")
        # A list of a CPU is linked by `next`, which is at the place of lru.next.
        self.page = Members(prog, page_type, next="lru.next", cache="slab_cache")
        self.page_bytes = sizeof(page_type)
        self.inuse, self.objects = (
            bits(prog, page_type, member.bit_offset, member.bit_field_size)
            for member in map(page_type.member, ("inuse", "objects"))
        )
        self.byte_order = byte_order(prog)
        self.free_slots = Counter()

    def run(self):
        nodes, node_lists = self.read_nodes()
        slabs, cpu_lists, free_lists = self.read_cpus()
        self.add_slabs(slabs)
        self.add_lists(node_lists + cpu_lists, sum(node.slabs for node in nodes.values()))
        step = max(1, -(-len(free_lists) // _MAX_FREE_LISTS))
        self.add_free_lists(free_lists[::step], step)
        return {cache: self.usage_of(cache, nodes) for cache in self.caches}, step

    def usage_of(self, cache, nodes):
        slabs = sum(nodes[node].slabs for node in self.nodes[cache])
        slots = sum(nodes[node].slots for node in self.nodes[cache])
        slab_slots = self.caches[cache].oo & _SLOTS_MASK
        return Usage(self.nodes[cache], slabs, slots, self.free_slots[cache], self.slab_bytes(cache), slab_slots)

    def slab_bytes(self, cache):
        return self.prog["PAGE_SIZE"].value_() << (self.caches[cache].oo >> _ORDER_SHIFT)

    def read_nodes(self):
        """Return the fields of each ``struct kmem_cache_node``, by address, and the lists of slabs with free slots."""
        node_type = self.prog.type("struct kmem_cache_node")
        paths = {"first": "partial.next", "slabs": "nr_slabs.counter", "slots": "total_objects.counter"}
        members = Members(self.prog, node_type, **paths)
        data = read_each(self.prog, [node for nodes in self.nodes.values() for node in nodes], members.end)
        nodes = {node: members.decode(data[node]) for node in data}
        head, link = offsetof(node_type, "partial"), offsetof(self.prog.type("struct page"), "lru")
        lists = [
            _List(cache, nodes[node].first - link, node + head - link, link)
            for cache, cache_nodes in self.nodes.items()
            for node in cache_nodes
        ]
        return nodes, lists

    def read_cpus(self):
        """Return what CPUs have of each cache: the slabs in use, lists of slabs, and the first slots of free lists.

        A slab or a slot comes in a pair with its cache. CPUs that are offline have none.
        """
        cpu_type = self.prog.type("struct kmem_cache_cpu")
        paths = {"page": "page", "free": "freelist"}
        if has_member(cpu_type, "partial"):  # CONFIG_SLUB_CPU_PARTIAL
            paths["partial"] = "partial"
        members = Members(self.prog, cpu_type, **paths)
        slabs, lists, free_lists = [], [], []
        for cpu in for_each_online_cpu(self.prog):
            offset = per_cpu_ptr(Object(self.prog, "void *", 0), cpu).value_()
            addresses = {cache: fields.cpu_slab + offset & _ADDRESS_MASK for cache, fields in self.caches.items()}
            data = read_each(self.prog, addresses.values(), members.end)
            for cache, address in addresses.items():
                fields = members.decode(data[address])
                slabs += [(cache, fields.page)] if fields.page else []
                free_lists += [(cache, fields.free)] if fields.free else []
                lists.append(_List(cache, getattr(fields, "partial", 0), 0, 0))
        return slabs, lists, free_lists

    def add_slabs(self, slabs):
        """Add the free slots of slabs, pairs (cache, ``struct page *``).

        :return: list of the pages' links, None for a slab that left its cache while a running kernel was read.
        """
        data = read_each(self.prog, [page for _, page in slabs], self.page_bytes)
        links = []
        for cache, page in slabs:
            fields = self.page.decode(data[page])
            if fields.cache != cache and is_running(self.prog):
                links.append(None)
                continue
            if fields.cache != cache:
                raise CollectError("bad_core", "a slab cache has the slab at 0x%x, which is not its own" % page)
            number = int.from_bytes(data[page], self.byte_order)
            self.free_slots[cache] += self.objects.extract(number) - self.inuse.extract(number)
            links.append(fields.next)
        return links

    def add_lists(self, lists, max_slabs):
        """Add the free slots of all slabs on lists."""
        while True:
            lists = [slabs for slabs in lists if slabs.page != slabs.end]
            if not lists:
                return
            max_slabs -= len(lists)
            if max_slabs < 0:
                raise CollectError("bad_core", "the slab caches have more slabs on lists than in all")
            links = self.add_slabs([(slabs.cache, slabs.page) for slabs in lists])
            lists = [
                slabs._replace(page=link - slabs.link_offset) for slabs, link in zip(lists, links) if link is not None
            ]

    def add_free_lists(self, free_lists, step):
        """Add the lengths of free lists, each for `step` of them: pairs (cache, first slot)."""
        by_slab_bytes = defaultdict(list)
        for cache, slot in free_lists:
            by_slab_bytes[self.slab_bytes(cache)].append((cache, slot))
        for slab_bytes, lists in by_slab_bytes.items():
            for i in range(0, len(lists), _SLABS_PER_READ):
                batch = lists[i : i + _SLABS_PER_READ]
                data = read_each(self.prog, [slot & -slab_bytes for _, slot in batch], slab_bytes)
                for cache, slot in batch:
                    self.free_slots[cache] += step * self.free_list_length(cache, slot, data[slot & -slab_bytes])

    def free_list_length(self, cache, slot, slab):
        """Return the length of a free list, 0 if it changed while a running kernel was read."""
        for coding in self.codings:
            length = self.decoded_length(cache, slot, slab, coding)
            if length:
                self.codings = (coding,)
                return length
        if is_running(self.prog):
            return 0
        raise CollectError("bad_core", "the free list from 0x%x leads out of its slab" % slot)

    def decoded_length(self, cache, slot, slab, coding):
        """Return the length of a free list, 0 if a link leads out of the slab.

        :param slab: bytes of the slab.
        """
        fields = self.caches[cache]
        random = getattr(fields, "random", 0)
        start = slot & -len(slab)
        for length in range(1, (fields.oo & _SLOTS_MASK) + 1):
            link = slot + fields.link_offset
            if not 0 <= link - start <= len(slab) - _POINTER_BYTES:
                return 0
            slot = self.word.unpack_from(slab, link - start)[0] ^ random ^ coding(link)
            if not slot:
                return length
        return 0


def _no_coding(link):
    return 0


def _coding_of_v5_7(link):
    """Return what the link at an address is XORed with, besides the cache's random number.

    Since commit 1ad53d9fa3f6 ("slub: improve bit diffusion for freelist ptr obfuscation") (in v5.7, and in stable
    kernels). No member shows it.
    """
    return int.from_bytes(link.to_bytes(8, "little"), "big")


def _coding_before_v5_7(link):
    return link
