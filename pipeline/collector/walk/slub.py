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

from ..access.memory import Members, byte_order, check_range, has_member, is_running, read_each, struct_prefix, words
from ..status import CollectError
from .memmap import bits
from .nodes import nr_node_ids

_POINTER_BYTES = 8
_ADDRESS_MASK = (1 << 64) - 1
# kmem_cache.oo is the order of a slab, above the number of its slots.
_ORDER_SHIFT = 16
_SLOTS_MASK = (1 << _ORDER_SHIFT) - 1
# Bounds the order: the largest MAX_ORDER is 15.
_MAX_ORDER = 15
# page.objects has 15 bits.
_MAX_SLOTS = (1 << 15) - 1
# Bounds kmem_cache_node.nr_slabs: 256 TB in slabs of 4 KB.
_MAX_SLABS = 1 << 36
# Bounds the memory for one bulk read: a slab has 4 to 32 KB.
_SLABS_PER_READ = 256
# Bounds the free lists of CPUs that are read, with their slabs: 4 seconds, 64 to 512 MB. Of more, a sample is read.
_MAX_FREE_LISTS = 1 << 14
# Bounds the slabs that are read of each list, as each step takes a read, and of all lists: about 5 seconds. What the
# rest has free is computed from these.
_MAX_STEPS = 1 << 12
_MAX_LISTED_SLABS = 1 << 20


class Usage(namedtuple("Usage", "nodes slabs slots free_slots slab_bytes slab_slots")):
    """What a slab cache has.

    nodes: addresses of its kmem_cache_nodes. slabs, slots, free_slots: in all. slab_bytes, slab_slots: of one slab.
    """

    __slots__ = ()


class _List(namedtuple("_List", "cache page end link_offset slabs free_slots")):
    """The rest of a list of slabs.

    page: the next ``struct page``. end: what follows the last one. link_offset: of the member that links point to.
    slabs: how many the kernel counts, 0 if it does not. free_slots: of the slabs before.
    """

    __slots__ = ()


def usage(prog, caches):
    """Return the Usage of slab caches, and what of their free slots is modelled.

    :param caches: addresses of ``struct kmem_cache``.
    :return: dict of address to Usage, and a list of clauses, empty if all free slots were counted.
    :raises LookupError: the kernel has another slab allocator, or no CONFIG_SLUB_DEBUG, which counts slabs.
    :raises CollectError: ``bad_core``: a list is broken, or a number is out of its bounds.
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
        for cache, fields in self.caches.items():
            check_range(0, fields.oo >> _ORDER_SHIFT, _MAX_ORDER, "the order of kmem_cache.oo at 0x%x" % cache)
            check_range(1, fields.oo & _SLOTS_MASK, _MAX_SLOTS, "the slots of kmem_cache.oo at 0x%x" % cache)
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
        self.modelled = []

    def run(self):
        nodes, node_lists = self.read_nodes()
        slabs, cpu_lists, free_lists = self.read_cpus()
        self.add_slabs(slabs)
        self.add_lists(node_lists + cpu_lists, sum(node.slabs for node in nodes.values()))
        step = max(1, -(-len(free_lists) // _MAX_FREE_LISTS))
        if step > 1:
            self.modelled.append("one in %d of the free lists of CPUs was read" % step)
        self.add_free_lists(free_lists[::step], step)
        return {cache: self.usage_of(cache, nodes) for cache in self.caches}, self.modelled

    def usage_of(self, cache, nodes):
        slabs = sum(nodes[node].slabs for node in self.nodes[cache])
        slots = sum(nodes[node].slots for node in self.nodes[cache])
        slab_slots = self.caches[cache].oo & _SLOTS_MASK
        # Lists change while a running kernel is read, and samples can have more free slots than the rest.
        free_slots = min(self.free_slots[cache], slots)
        return Usage(self.nodes[cache], slabs, slots, free_slots, self.slab_bytes(cache), slab_slots)

    def slab_bytes(self, cache):
        return self.prog["PAGE_SIZE"].value_() << (self.caches[cache].oo >> _ORDER_SHIFT)

    def read_nodes(self):
        """Return the fields of each ``struct kmem_cache_node``, by address, and the lists of slabs with free slots."""
        node_type = self.prog.type("struct kmem_cache_node")
        members = Members(
            self.prog,
            node_type,
            first="partial.next",
            listed="nr_partial",
            slabs="nr_slabs.counter",
            slots="total_objects.counter",
        )
        data = read_each(self.prog, [node for nodes in self.nodes.values() for node in nodes], members.end)
        nodes = {node: members.decode(data[node]) for node in data}
        for fields in nodes.values():
            check_range(0, fields.slabs, _MAX_SLABS, "kmem_cache_node.nr_slabs")
            # A slab is no longer counted before its slots are not.
            check_range(0, fields.slots, (fields.slabs + 1) * _MAX_SLOTS, "kmem_cache_node.total_objects")
        head, link = offsetof(node_type, "partial"), offsetof(self.prog.type("struct page"), "lru")
        lists = [
            _List(cache, nodes[node].first - link, node + head - link, link, nodes[node].listed, 0)
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
                lists.append(_List(cache, getattr(fields, "partial", 0), 0, 0, 0, 0))
        return slabs, lists, free_lists

    def add_slabs(self, slabs):
        """Add the free slots of slabs, pairs (cache, ``struct page *``).

        :return: list of pairs, the page's link and its free slots, with None as the link of a slab that left its cache
            while a running kernel was read.
        """
        data = read_each(self.prog, [page for _, page in slabs], self.page_bytes)
        links = []
        for cache, page in slabs:
            fields = self.page.decode(data[page])
            number = int.from_bytes(data[page], self.byte_order)
            free_slots = self.objects.extract(number) - self.inuse.extract(number)
            if fields.cache == cache and free_slots >= 0:
                self.free_slots[cache] += free_slots
                links.append((fields.next, free_slots))
            elif is_running(self.prog):
                links.append((None, 0))
            elif fields.cache == cache:
                raise CollectError("bad_core", "the slab at 0x%x has more objects than slots" % page)
            else:
                raise CollectError("bad_core", "a slab cache has the slab at 0x%x, which is not its own" % page)
        return links

    def add_lists(self, lists, max_slabs):
        """Add the free slots of all slabs on lists: of those that are not read as many as of the others."""
        steps = slabs_read = 0
        lists = [rest for rest in lists if rest.page != rest.end]
        while lists and steps < _MAX_STEPS and slabs_read < _MAX_LISTED_SLABS:
            steps += 1
            slabs_read += len(lists)
            if slabs_read > max_slabs:
                raise CollectError("bad_core", "the slab caches have more slabs on lists than in all")
            links = self.add_slabs([(rest.cache, rest.page) for rest in lists])
            lists = [
                rest._replace(page=link - rest.link_offset, free_slots=rest.free_slots + free_slots)
                for rest, (link, free_slots) in zip(lists, links)
                if link is not None and link - rest.link_offset != rest.end
            ]
        if lists:
            self.modelled.append("%d slabs of each list were read" % steps)
        for rest in lists:
            self.free_slots[rest.cache] += rest.free_slots * max(0, rest.slabs - steps) // steps

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
