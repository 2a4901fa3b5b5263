"""Every list_lru of the kernel: whose it is, what it holds in bytes as allocated, and the items on its lists.

The eager layouts are counted, not walked: memcg_nr_cache_ids objects on each node whose pointer array exists. The
lists themselves are read only where list_lru_node.nr_items says that memcgs have items, and then only those of
online memcgs: at offline a memcg's items move to its parent (memcg_drain_all_list_lrus(), v4.0 on).
"""

import struct
from collections import namedtuple

from drgn import offsetof, sizeof
from drgn.helpers.linux.slab import slab_object_info

from . import layouts, superblocks
from .memory import Members, has_member, read, read_each, walk_list
from .slab import allocation
from .status import CollectError

_MOST_LIST_LRUS = 1 << 22
# Slots are gathered list by list; this bounds how many list_lru_one are held at once (about 100 MB).
_MOST_ONES_AT_ONCE = 1 << 18
_ZERO_SIZE_PTR = 16

_MAX_NUMNODES = 1 << 10
_MEM_CGROUP_ID_MAX = 65535

_XA_CHUNK_SHIFT = 6
_XA_CHUNK_SIZE = 1 << _XA_CHUNK_SHIFT
# An xarray of ids up to 65535 has at most three levels.
_XA_ROOT_SHIFTS = (0, _XA_CHUNK_SHIFT, 2 * _XA_CHUNK_SHIFT)
# Pointers below are no pointers, internal entries below no nodes (xa_is_node(), XA_ZERO_ENTRY, XA_RETRY_ENTRY).
_XA_LOWEST_POINTER = 4096


_Link = namedtuple("_Link", "next")


class ListLru:
    """A ``struct list_lru`` with what was found in it; the fields are columns of the table ``list_lrus``."""

    def __init__(self, address, owner, superblock, name):
        self.address = address
        self.owner = owner
        self.superblock = superblock
        self.name = name
        self.memcg_aware = False
        self.nodes = 0
        self.list_lru_one_objects = 0
        self.list_lru_one_bytes = 0
        self.pointer_array_bytes = 0
        self.node_array_bytes = 0
        self.xa_node_bytes = 0
        self.root_items = 0
        self.memcg_items = 0
        # The index of each memcg with items, to these; v4.0 to v5.17 kmemcg_id, later memcg->id.id.
        self.items_by_id = {}
        # On a lazy kernel the indices that have an entry.
        self.ids = []

    @property
    def total_bytes(self):
        """What the list_lru holds: objects, arrays, xarray nodes."""
        return self.list_lru_one_bytes + self.pointer_array_bytes + self.node_array_bytes + self.xa_node_bytes


class Found:
    """What the walk over the list_lrus found.

    :ivar list_lrus: of ListLru. :ivar layout: see layouts. :ivar cache_ids: memcg_nr_cache_ids or None.
    :ivar object_bytes: of one list_lru_one (eager) or list_lru_memcg (lazy) as allocated, None without any.
    :ivar object_cache: the ``struct kmem_cache *`` of a sampled one, or None.
    :ivar raced: notes on what changed under the walk; empty on a consistent kernel.
    """

    def __init__(self, layout):
        self.layout = layout
        self.list_lrus = []
        self.cache_ids = None
        self.object_bytes = None
        self.object_cache = None
        self.raced = []


def walk(prog, layout, sbs, memcgs):
    """Find and size all list_lrus.

    :param layout: from layouts.detect(), not ``none``. :param sbs: of SuperBlock. :param memcgs: of Memcg.
    :raises CollectError: ``bad_core``: a list does not end.
    """
    found = Found(layout)
    found.list_lrus = _find(prog, sbs)
    if layout in layouts.EAGER:
        _Eager(prog, found, memcgs).read()
    else:
        _Lazy(prog, found).read()
    return found


def _find(prog, sbs):
    """Return the list_lrus of the superblocks, and those on the kernel's own list that are not a superblock's."""
    list_lrus = {}
    links = {}
    superblock_type = prog.type("struct super_block")
    for member, name in zip(superblocks.LRUS, ("dentry", "inode")):
        offset = offsetof(superblock_type, member)
        for sb in sbs:
            address = sb.address + offset
            list_lrus[address] = ListLru(address, "superblock", sb.address, name)
            links[address] = _Link(sb.lru_links[member])
    for address in _listed(prog, links):
        if address not in list_lrus:
            list_lrus[address] = _with_owner(prog, address)
    return list(list_lrus.values())


def _listed(prog, links):
    """Yield the addresses on list_lrus: all of them, or since v5.16 (3eef11279ba5) the memcg-aware ones.

    :param links: the _Link of the list_lrus that were read with their superblocks, by address.
    """
    try:
        head = prog["memcg_list_lrus"]
    except LookupError:
        head = prog["list_lrus"]
    list_lru_type = prog.type("struct list_lru")
    members = Members(prog, list_lru_type, next="list.next")
    first, end = head.next.value_(), head.address_of_().value_()
    offset = offsetof(list_lru_type, "list")
    for address, _ in walk_list(prog, members, first, end, offset, _MOST_LIST_LRUS, known=links):
        yield address


def _with_owner(prog, address):
    # A lock_class_key of no size (without lockdep) shares the address of the list_lru that it is named after. Of the
    # symbols at one address drgn's index of /proc/kallsyms finds only the last by address, but each by its name.
    symbols = prog.symbols(address)
    keys = [symbol.name for symbol in symbols if symbol.name.endswith("_key")]
    symbols += [symbol for key in keys for symbol in prog.symbols(key[: -len("_key")])]
    names = [symbol.name for symbol in symbols if symbol.address == address]
    if names:
        return ListLru(address, "symbol", None, min(names, key=len))
    info = slab_object_info(prog, address)
    if info:
        cache = info.slab_cache.name.string_().decode(errors="backslashreplace")
        return ListLru(address, "slab", None, "%s+%d" % (cache, address - info.address))
    return ListLru(address, "unknown", None, None)


def _within(low, value, high, what):
    if not low <= value <= high:
        raise CollectError("bad_core", "%s is %d, not between %d and %d" % (what, value, low, high))
    return value


class _Walk:
    """What both families share: the list_lru structs and their node arrays."""

    def __init__(self, prog, found):
        self.prog = prog
        self.found = found
        self.nr_node_ids = _within(1, prog["nr_node_ids"].value_(), _MAX_NUMNODES, "nr_node_ids")
        node_type = prog.type("struct list_lru_node")
        self.node_bytes = sizeof(node_type)
        paths = {"root_items": "lru.nr_items"}
        if has_member(node_type, "nr_items.counter"):  # v6.13 (fb56fdf8b9a2)
            paths["nr_items"] = "nr_items.counter"
        elif has_member(node_type, "nr_items"):  # v4.13 (2c80cd57c743)
            paths["nr_items"] = "nr_items"
        if found.layout in layouts.EAGER:
            paths["memcg_lrus"] = "memcg_lrus"
        self.node = Members(prog, node_type, **paths)
        self.has_nr_items = "nr_items" in paths

    def structs(self):
        """Yield each list_lru that is alive with its fields and its nodes' fields."""
        list_lru_type = self.prog.type("struct list_lru")
        paths = {"node": "node"}
        if has_member(list_lru_type, "memcg_aware"):  # v5.2 (3e8589963773)
            paths["memcg_aware"] = "memcg_aware"
        if has_member(list_lru_type, "xa"):
            paths["xa_head"] = "xa.xa_head"
        members = Members(self.prog, list_lru_type, **paths)
        data = read_each(self.prog, [lru.address for lru in self.found.list_lrus], members.end)
        # list_lru_destroy() leaves node NULL while the superblock is still on its list.
        alive = [(lru, members.decode(data[lru.address])) for lru in self.found.list_lrus]
        alive = [(lru, fields) for lru, fields in alive if fields.node]
        arrays = read_each(self.prog, [fields.node for _, fields in alive], self.node_bytes * self.nr_node_ids)
        if alive:
            node_array_bytes, _ = allocation(self.prog, alive[0][1].node)
        for lru, fields in alive:
            array = arrays[fields.node]
            nodes = [self.node.decode(array, nid * self.node_bytes) for nid in range(self.nr_node_ids)]
            lru.node_array_bytes = node_array_bytes
            lru.root_items = sum(max(0, node.root_items) for node in nodes)
            yield lru, fields, nodes

    def memcg_items(self, node):
        """Return how many of a node's items are on memcgs' lists, or None where the kernel does not count them."""
        return node.nr_items - node.root_items if self.has_nr_items else None

    def check(self, lru, nodes):
        """Compare what was found on the lists with what list_lru_node.nr_items says."""
        lru.memcg_items = sum(lru.items_by_id.values())
        if self.has_nr_items:
            counted = sum(self.memcg_items(node) for node in nodes)
            if counted != lru.memcg_items:
                self.found.raced.append(
                    "list_lru 0x%x: %d items on the lists of online memcgs, nr_items counts %d"
                    % (lru.address, lru.memcg_items, counted)
                )


class _Eager(_Walk):
    """v4.0 to v5.17: on each node a pointer array with a list_lru_one for every id."""

    def __init__(self, prog, found, memcgs):
        super().__init__(prog, found)
        cache_ids = prog["memcg_nr_cache_ids"].value_()
        self.cache_ids = found.cache_ids = _within(0, cache_ids, _MEM_CGROUP_ID_MAX, "memcg_nr_cache_ids")
        self.live_ids = sorted(memcg.cache_id for memcg in memcgs if memcg.cache_id is not None)
        if self.live_ids:
            _within(0, self.live_ids[-1], self.cache_ids - 1, "the highest kmemcg_id")
        self.header_bytes = sizeof(prog.type("struct list_lru_memcg"))
        self.one = Members(prog, "struct list_lru_one", nr_items="nr_items")
        self.array_bytes = {}
        self.pending = []
        self.pending_ones = 0

    def read(self):
        checked = []
        for lru, fields, nodes in self.structs():
            arrays = [node.memcg_lrus for node in nodes if node.memcg_lrus]
            # Before v5.2 the kernel itself told an aware list by its first node's array.
            lru.memcg_aware = bool(getattr(fields, "memcg_aware", nodes[0].memcg_lrus))
            if not arrays:
                continue
            lru.nodes = len(arrays)
            lru.pointer_array_bytes = sum(map(self.size_of_array, arrays))
            lru.list_lru_one_objects = self.cache_ids * len(arrays)
            lru.list_lru_one_bytes = lru.list_lru_one_objects * self.size_of_object(arrays[0])
            for node in nodes:
                if node.memcg_lrus and self.memcg_items(node) != 0:
                    self.gather(lru, node.memcg_lrus)
            checked.append((lru, nodes))
        self.read_items()
        for lru, nodes in checked:
            self.check(lru, nodes)
        if self.prog["memcg_nr_cache_ids"].value_() != self.cache_ids:
            raise CollectError("bad_core", "memcg_nr_cache_ids grew during the walk")

    def size_of_array(self, address):
        """Return the bytes of a pointer array.

        All have room for the same ids, so one of those that kmalloc() gave and one of those that vmalloc() had to
        give is measured; the two live terabytes apart.
        """
        if address == _ZERO_SIZE_PTR and not self.cache_ids and not self.header_bytes:
            return 0
        region = address >> 40
        if region not in self.array_bytes:
            self.array_bytes[region], _ = allocation(self.prog, address)
        return self.array_bytes[region]

    def size_of_object(self, array):
        if self.found.object_bytes is None and self.cache_ids:
            (sample,) = self.slots(array, 1)
            self.found.object_bytes, self.found.object_cache = allocation(self.prog, sample)
        return self.found.object_bytes or 0

    def slots(self, array, count):
        """Return the first pointers of a pointer array."""
        return struct.unpack("%dQ" % count, read(self.prog, array + self.header_bytes, 8 * count))

    def gather(self, lru, array):
        if self.live_ids:
            self.pending.append((lru, array))
            self.pending_ones += len(self.live_ids)
            if self.pending_ones > _MOST_ONES_AT_ONCE:
                self.read_items()

    def read_items(self):
        """Read nr_items of the online memcgs' list_lru_one in the gathered arrays."""
        if not self.pending:
            return
        at = []
        for lru, array in self.pending:
            pointers = self.slots(array, self.live_ids[-1] + 1)
            at += [(lru, cache_id, pointers[cache_id]) for cache_id in self.live_ids]
        data = read_each(self.prog, [address for _, _, address in at], self.one.end)
        for lru, cache_id, address in at:
            items = self.one.decode(data[address]).nr_items
            if items > 0:  # transiently negative under a concurrent walk
                lru.items_by_id[cache_id] = lru.items_by_id.get(cache_id, 0) + items
        self.pending, self.pending_ones = [], 0


def _broken_xarray(owner):
    return CollectError("bad_core", "list_lru 0x%x: its xarray is broken" % owner)


class _Lazy(_Walk):
    """v5.18 on: an xarray by memcg id with a list_lru_memcg, made on first use, for all nodes."""

    def __init__(self, prog, found):
        super().__init__(prog, found)
        memcg_type = prog.type("struct list_lru_memcg")
        self.ones_offset = offsetof(memcg_type, "node")
        self.one_bytes = sizeof(prog.type("struct list_lru_one"))
        self.one = Members(prog, "struct list_lru_one", nr_items="nr_items")
        self.xa_node = Members(prog, "struct xa_node", shift="shift", array="array")
        self.xa_node_type_bytes = sizeof(prog.type("struct xa_node"))
        self.xa_offset = offsetof(prog.type("struct list_lru"), "xa")
        self.slots_offset = offsetof(prog.type("struct xa_node"), "slots")
        self.xa_node_bytes = prog["radix_tree_node_cachep"].size.value_()

    def read(self):
        lrus = []
        for lru, fields, nodes in self.structs():
            # Since v6.1 (and in stable kernels) an unaware list keeps an empty xarray.
            lru.memcg_aware = bool(getattr(fields, "memcg_aware", True))
            lru.nodes = self.nr_node_ids
            if lru.memcg_aware:
                lrus.append((lru, fields.xa_head, nodes))
        entries = self.entries({lru.address: head for lru, head, _ in lrus})
        for lru, _, _ in lrus:
            lru.ids = [memcg_id for memcg_id, _ in entries[lru.address]]
            lru.list_lru_one_objects = len(lru.ids)
            if lru.list_lru_one_objects:
                lru.list_lru_one_bytes = lru.list_lru_one_objects * self.size_of_object(entries[lru.address][0][1])
        with_items = [
            (lru, memcg_id, address)
            for lru, _, nodes in lrus
            if any(self.memcg_items(node) for node in nodes)
            for memcg_id, address in entries[lru.address]
        ]
        size = self.ones_offset + self.one_bytes * self.nr_node_ids
        data = read_each(self.prog, [address for _, _, address in with_items], size)
        for lru, memcg_id, address in with_items:
            ones = data[address]
            # LONG_MIN marks a list whose memcg died, v6.13 on.
            items = sum(
                max(0, self.one.decode(ones, self.ones_offset + nid * self.one_bytes).nr_items)
                for nid in range(self.nr_node_ids)
            )
            if items:
                lru.items_by_id[memcg_id] = items
        for lru, _, nodes in lrus:
            self.check(lru, nodes)

    def entries(self, heads):
        """Return the (memcg id, ``struct list_lru_memcg *``) in each xarray; count its nodes into xa_node_bytes.

        :param heads: address of the list_lru to ``xa_head``. All xarrays are read level by level together.
        """
        by_address = {lru.address: lru for lru in self.found.list_lrus}
        entries = {owner: [] for owner in heads}
        # Of each entry: whose, the index of its slot, the shift of its node (None: xa_head), the entry.
        level = [(owner, 0, None, entry) for owner, entry in heads.items()]
        while level:
            nodes = []
            for owner, index, shift, entry in level:
                if entry & 3 == 2:
                    if entry > _XA_LOWEST_POINTER:
                        nodes.append((owner, index, shift, entry - 2))
                elif entry:
                    if shift or entry & 7 or entry < _XA_LOWEST_POINTER:
                        raise _broken_xarray(owner)
                    entries[owner].append((index, entry))
            data = read_each(self.prog, [address for _, _, _, address in nodes], self.xa_node_type_bytes)
            level = []
            for owner, index, above, address in nodes:
                node = self.xa_node.decode(data[address])
                # A node that is freed and used again, or a broken pointer, belongs to another array.
                shifts = _XA_ROOT_SHIFTS if above is None else (above - _XA_CHUNK_SHIFT,)
                if node.array != owner + self.xa_offset or node.shift not in shifts:
                    raise _broken_xarray(owner)
                by_address[owner].xa_node_bytes += self.xa_node_bytes
                slots = struct.unpack_from("%dQ" % _XA_CHUNK_SIZE, data[address], self.slots_offset)
                level += [
                    (owner, index + (i << node.shift), node.shift, entry) for i, entry in enumerate(slots) if entry
                ]
        return entries

    def size_of_object(self, address):
        if self.found.object_bytes is None:
            self.found.object_bytes, self.found.object_cache = allocation(self.prog, address)
        return self.found.object_bytes
