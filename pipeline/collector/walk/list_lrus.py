"""Every list_lru of the kernel: whose it is, what it holds in bytes as allocated, and the items on its lists.

The eager layouts are counted, not walked: memcg_nr_cache_ids objects on each node whose pointer array exists. The
lists themselves are read only where list_lru_node.nr_items says that memcgs have items, and then only those of
online memcgs: at offline a memcg's items move to its parent (memcg_drain_all_list_lrus(), v4.0 on).
"""

import struct
from collections import namedtuple

from drgn import offsetof, sizeof
from drgn.helpers.linux.mm import in_direct_map

from ..access.memory import Members, has_member, is_running, read, read_each
from ..status import CollectError
from . import layouts, owners, superblocks
from .nodes import in_state, nr_node_ids
from .slab import allocation
from .xarrays import Xarrays

# Slots are gathered list by list; this bounds how many list_lru_one are held at once (about 100 MB).
_MOST_ONES_AT_ONCE = 1 << 18
_ZERO_SIZE_PTR = 16
_REGION_SHIFT = 30

_MAX_NUMNODES = 1 << 10
_MEM_CGROUP_ID_MAX = 65535


class ListLru:
    """A ``struct list_lru`` with what was found in it; the fields are columns of the table ``list_lrus``."""

    def __init__(self, owned):
        self.address, self.owner, self.superblock, self.name = owned
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
        # Where memcgs have an entry, or not, the indices of those that have one.
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
    :ivar gone: addresses of the superblocks that went away meanwhile; their list_lrus are left out.
    """

    def __init__(self, layout):
        self.layout = layout
        self.list_lrus = []
        self.cache_ids = None
        self.object_bytes = None
        self.object_cache = None
        self.raced = []
        self.gone = set()


def walk(prog, layout, sbs, memcgs, likely=None, verify=False):
    """Find and size all list_lrus.

    :param layout: from layouts.detect(), not ``none``. :param sbs: of SuperBlock. :param memcgs: of Memcg.
    :param likely: address of a list_lru to the Memcgs that are likely to have items there; only if these do not have
        all of them the others are looked at. :param verify: measure every pointer array, look at every slot.
    :raises CollectError: ``bad_core``: a list does not end, arrays are missing or were replaced meanwhile, or what is
        verified is not as the sample.
    """
    found = Found(layout)
    found.list_lrus = [ListLru(owned) for owned in owners.find(prog, sbs)]
    walked = _WALKS[layout](prog, found, memcgs, likely or {}, verify)
    walked.read()
    if is_running(prog):
        _leave_out_gone(prog, found, sbs, walked)
    for lru in found.list_lrus:
        if lru.memcg_aware and not lru.nodes:
            raise CollectError("bad_core", "list_lru 0x%x is memcg-aware and has no arrays for memcgs" % lru.address)
    return found


def _leave_out_gone(prog, found, sbs, walked):
    """Leave out the list_lrus of what went away; what is left has to have the arrays that were sized.

    list_lru_destroy() comes before a superblock is taken off its list: the superblocks are asked for again after the
    arrays, and before, as memory that was freed leads anywhere.
    """
    found.gone = _gone(prog, sbs)
    replaced = walked.replaced([lru for lru in found.list_lrus if lru.superblock not in found.gone])
    found.gone |= _gone(prog, sbs)
    for lru in replaced:
        if lru.superblock in found.gone:
            continue
        if lru.superblock or lru.memcg_aware:
            raise CollectError("bad_core", "the arrays of list_lru 0x%x were replaced during the walk" % lru.address)
        # Such as the two of an xfs that is unmounted; it holds next to nothing.
        found.raced.append("list_lru 0x%x went away during the walk" % lru.address)
        found.list_lrus.remove(lru)
    if found.gone:
        found.raced.append("%d superblocks went away during the walk" % len(found.gone))
        found.list_lrus = [lru for lru in found.list_lrus if lru.superblock not in found.gone]


def _gone(prog, sbs):
    """Return the addresses of superblocks that are no longer there; another one at its address has another root.

    One that is only being mounted has none at first.
    """
    listed = superblocks.listed(prog)
    return {sb.address for sb in sbs if sb.address not in listed or sb.root not in (0, listed[sb.address])}


def _within(low, value, high, what):
    if not low <= value <= high:
        raise CollectError("bad_core", "%s is %d, not between %d and %d" % (what, value, low, high))
    return value


# A list_lru as it was read: the ListLru, the address and the fields of the struct that has ``node`` (see
# layouts.holder_type()), list_lru.memcg_aware or None without such a member, the fields of its list_lru_nodes. A
# destroyed one has no nodes, and no fields where there is no such struct.
_State = namedtuple("_State", "lru holder fields memcg_aware nodes")


class _Walk:
    """What all layouts share: the structs, their node arrays, and the items on the memcgs' lists.

    A subclass says where the memcgs' lists are.

    :param in_holder: members of the holder that lead there, as in Members. :param in_node: of struct list_lru_node.
    """

    def __init__(self, prog, found, in_holder=(), in_node=()):
        self.prog = prog
        self.found = found
        self.holder_paths = dict(in_holder, node="node")
        self.nr_node_ids = _within(1, nr_node_ids(prog), _MAX_NUMNODES, "nr_node_ids")
        node_type = prog.type("struct list_lru_node")
        self.node_bytes = sizeof(node_type)
        paths = dict(in_node, root_items="lru.nr_items")
        if has_member(node_type, "nr_items.counter"):  # v6.13 (fb56fdf8b9a2)
            paths["nr_items"] = "nr_items.counter"
        elif has_member(node_type, "nr_items"):  # v4.13 (2c80cd57c743)
            paths["nr_items"] = "nr_items"
        self.node = Members(prog, node_type, **paths)
        self.has_nr_items = "nr_items" in paths
        self.one = Members(prog, "struct list_lru_one", nr_items="nr_items")
        # Of the object with a memcg's list_lru_one: its bytes, and where in it they are.
        self.object_bytes = self.one.end
        self.ones = (0,)
        self.sizes = {}
        self.pending = []
        self.states = []

    def alive(self):
        """Yield the _State of each list_lru that was not destroyed; size its node array, count the root's items."""
        self.states = self.look(self.found.list_lrus)
        for state in self.states:
            if not state.nodes:
                continue
            lru = state.lru
            lru.node_array_bytes = self.size_of("node array", state.fields.node)
            if state.holder != lru.address:
                lru.node_array_bytes += self.size_of("ext", state.holder)
            lru.root_items = sum(max(0, node.root_items) for node in state.nodes)
            yield state

    def look(self, lrus):
        """Return the _State of each of some list_lrus."""
        list_lru_type, holder_type = self.prog.type("struct list_lru"), layouts.holder_type(self.prog)
        holder = Members(self.prog, holder_type, **self.holder_paths)
        data = read_each(self.prog, [lru.address for lru in lrus], sizeof(list_lru_type))
        memcg_aware = dict.fromkeys(data)
        if has_member(list_lru_type, "memcg_aware"):  # v5.2 (3e8589963773)
            members = Members(self.prog, list_lru_type, memcg_aware="memcg_aware")
            memcg_aware = {address: bool(members.decode(data[address]).memcg_aware) for address in data}
        holders = {address: address for address in data}
        if has_member(list_lru_type, "ext"):
            members = Members(self.prog, list_lru_type, ext="ext")
            holders = {address: members.decode(data[address]).ext for address in data}
            data = read_each(self.prog, [ext for ext in holders.values() if ext], sizeof(holder_type))
        fields = {address: holder.decode(data[address]) for address in data}
        # list_lru_destroy() leaves no node array while the superblock is still on its list.
        arrays = [held.node for held in fields.values() if held.node]
        data = read_each(self.prog, arrays, self.node_bytes * self.nr_node_ids)
        states = []
        for lru in lrus:
            at = holders[lru.address]
            held, nodes = fields.get(at), []
            if held and held.node:
                array = data[held.node]
                nodes = [self.node.decode(array, nid * self.node_bytes) for nid in range(self.nr_node_ids)]
            states.append(_State(lru, at, held, memcg_aware[lru.address], nodes))
        return states

    def size_of(self, what, address):
        """Return the bytes of an object that is as large as all of its kind; the first one is measured."""
        if what not in self.sizes:
            self.sizes[what], _ = allocation(self.prog, address)
        return self.sizes[what]

    def size_of_object(self, address):
        """Return the bytes of an object with a memcg's list_lru_one; the first one is measured."""
        if self.found.object_bytes is None:
            self.found.object_bytes, self.found.object_cache = allocation(self.prog, address)
        return self.found.object_bytes

    def memcg_items(self, node):
        """Return how many of a node's items are on memcgs' lists, or None where the kernel does not count them."""
        return node.nr_items - node.root_items if self.has_nr_items else None

    def gather(self, lru, objects):
        """Have the items in the objects of memcgs, pairs (id, address), counted into lru.items_by_id."""
        self.pending += [(lru, memcg_id, address) for memcg_id, address in objects]
        if len(self.pending) > _MOST_ONES_AT_ONCE:
            self.count_items()

    def count_items(self):
        data = read_each(self.prog, [address for _, _, address in self.pending], self.object_bytes)
        for lru, memcg_id, address in self.pending:
            counts = (self.one.decode(data[address], offset).nr_items for offset in self.ones)
            # Transiently negative under a concurrent walk; LONG_MIN marks a list whose memcg died, v6.13 on.
            items = sum(count for count in counts if count > 0)
            if items:
                lru.items_by_id[memcg_id] = lru.items_by_id.get(memcg_id, 0) + items
        self.pending = []

    def check(self, checked):
        """Compare what was found on the lists of each _State with what list_lru_node.nr_items says."""
        self.count_items()
        for alive in checked:
            lru = alive.lru
            lru.memcg_items = sum(lru.items_by_id.values())
            if self.has_nr_items:
                counted = sum(map(self.memcg_items, alive.nodes))
                if counted != lru.memcg_items:
                    self.found.raced.append(
                        "list_lru 0x%x: %d items on the lists of online memcgs, nr_items counts %d"
                        % (lru.address, lru.memcg_items, counted)
                    )

    def replaced(self, lrus):
        """Return which list_lrus' arrays are no longer where they were: freed, made, or replaced by larger ones."""
        then = {state.lru.address: self.arrays_of(state) for state in self.states}
        return [now.lru for now in self.look(lrus) if self.arrays_of(now) != then[now.lru.address]]

    def arrays_of(self, state):
        """Return the addresses of a list_lru's arrays."""
        return [state.fields.node] if state.fields else []


class _Arrays:
    """The arrays with a pointer for every id: how many ids, which of them live, and the arrays' sizes."""

    def __init__(self, prog, found, memcgs):
        self.prog = prog
        cache_ids = prog["memcg_nr_cache_ids"].value_()
        self.cache_ids = found.cache_ids = _within(0, cache_ids, _MEM_CGROUP_ID_MAX, "memcg_nr_cache_ids")
        self.live_ids = sorted(memcg.cache_id for memcg in memcgs if memcg.cache_id is not None)
        if self.live_ids:
            _within(0, self.live_ids[-1], self.cache_ids - 1, "the highest kmemcg_id")
        self.header_bytes = sizeof(prog.type("struct list_lru_memcg"))
        self.direct = {}
        self.sizes = {}

    def size_of(self, address):
        """Return the bytes of a pointer array.

        All have room for the same ids, so one of those that kmalloc() gave and one of those that vmalloc() had to
        give is measured. The two share no gigabyte.
        """
        if address == _ZERO_SIZE_PTR and not self.cache_ids and not self.header_bytes:
            return 0
        region = address >> _REGION_SHIFT
        if region not in self.direct:
            self.direct[region] = in_direct_map(self.prog, address)
        direct = self.direct[region]
        if direct not in self.sizes:
            self.sizes[direct], _ = allocation(self.prog, address)
        return self.sizes[direct]

    def slots(self, array, count):
        """Return the first pointers of a pointer array."""
        if not count:
            return ()
        return struct.unpack("%dQ" % count, read(self.prog, array + self.header_bytes, 8 * count))

    def at(self, array, ids):
        """Return (id, pointer) for some ids, ascending, of a pointer array."""
        slots = self.slots(array, ids[-1] + 1 if ids else 0)
        return [(cache_id, slots[cache_id]) for cache_id in ids]

    def verify(self, array):
        """Compare a pointer array with the sample that stands for it: its size, and an object for every id."""
        size, _ = allocation(self.prog, array)
        empty = self.slots(array, self.cache_ids).count(0)
        if size != self.size_of(array) or empty:
            raise CollectError(
                "bad_core",
                "the pointer array at 0x%x has %d bytes and %d of %d slots empty; the sample has %d bytes"
                % (array, size, empty, self.cache_ids, self.size_of(array)),
            )

    def check(self):
        if self.prog["memcg_nr_cache_ids"].value_() != self.cache_ids:
            raise CollectError("bad_core", "memcg_nr_cache_ids grew during the walk")


class _PerNode(_Walk):
    """v4.0 to v5.17: on each node a pointer array with a list_lru_one for every id."""

    def __init__(self, prog, found, memcgs, likely, verify):
        super().__init__(prog, found, in_node={"memcg_lrus": "memcg_lrus"})
        self.arrays = _Arrays(prog, found, memcgs)
        self.likely = likely
        self.verify = verify

    def read(self):
        cache_ids = self.arrays.cache_ids
        checked, with_items = [], []
        for alive in self.alive():
            lru = alive.lru
            arrays = [node.memcg_lrus for node in alive.nodes if node.memcg_lrus]
            lru.memcg_aware = alive.memcg_aware
            if lru.memcg_aware is None:  # then the kernel itself tells by its first node's array
                lru.memcg_aware = bool(alive.nodes[0].memcg_lrus)
            if not arrays:
                continue
            lru.nodes = len(arrays)
            lru.pointer_array_bytes = sum(map(self.arrays.size_of, arrays))
            if cache_ids:
                lru.list_lru_one_objects = cache_ids * len(arrays)
                lru.list_lru_one_bytes = lru.list_lru_one_objects * self.size_of_object(arrays[0])
            if self.verify and cache_ids:
                for array in arrays:
                    self.arrays.verify(array)
            filled = [node.memcg_lrus for node in alive.nodes if node.memcg_lrus and self.memcg_items(node) != 0]
            if filled:
                with_items.append((alive, filled))
            checked.append(alive)
        self.look_for_items(with_items)
        self.check(checked)
        self.arrays.check()

    def look_for_items(self, with_items):
        """Count the items of likely memcgs, and where that leaves some, of all: 20,000 lists for each of them."""
        for alive, arrays in with_items:
            ids = sorted(memcg.cache_id for memcg in self.likely.get(alive.lru.address, ()))
            for array in arrays:
                self.gather(alive.lru, self.arrays.at(array, ids))
        self.count_items()
        for alive, arrays in with_items:
            found = sum(alive.lru.items_by_id.values())
            if not self.has_nr_items or found != sum(map(self.memcg_items, alive.nodes)):
                alive.lru.items_by_id = {}
                for array in arrays:
                    self.gather(alive.lru, self.arrays.at(array, self.arrays.live_ids))

    def arrays_of(self, state):
        return [*super().arrays_of(state), *(node.memcg_lrus for node in state.nodes)]

    def size_of_object(self, array):
        """As in _Walk, of one that a pointer array leads to."""
        if self.found.object_bytes is None:
            (array,) = self.arrays.slots(array, 1)
        return super().size_of_object(array)


class _PerMemcg(_Walk):
    """Since 6a6b7b77cc0f: for a memcg one object, with a list_lru_one for each of nr_node_ids."""

    def __init__(self, prog, found, in_holder):
        super().__init__(prog, found, in_holder)
        try:
            object_type = prog.type("struct list_lru_per_memcg")
        except LookupError:  # since d70110704d2d
            object_type = prog.type("struct list_lru_memcg")
        one_bytes = sizeof(prog.type("struct list_lru_one"))
        first = offsetof(object_type, "node")
        # memcg_init_list_lru_one() leaves those of a node that is not possible as kmalloc() gave them.
        possible = in_state(prog, "N_POSSIBLE")
        self.ones = [first + one_bytes * nid for nid in possible]
        self.object_bytes = first + one_bytes * self.nr_node_ids

    def has_memcg_items(self, alive):
        return any(self.memcg_items(node) != 0 for node in alive.nodes)


class _Mlrus(_PerMemcg):
    """6a6b7b77cc0f to bbca91cca9a9: one pointer array, in which the lazy kernels since 5abc1e37afa0 have NULLs."""

    def __init__(self, prog, found, memcgs, likely, verify):
        super().__init__(prog, found, {"mlrus": "mlrus"})
        self.arrays = _Arrays(prog, found, memcgs)

    def read(self):
        checked = []
        for alive in self.alive():
            lru, array = alive.lru, alive.fields.mlrus
            lru.memcg_aware = bool(array) if alive.memcg_aware is None else alive.memcg_aware
            if not lru.memcg_aware or not array:
                continue
            lru.nodes = 1
            lru.pointer_array_bytes = self.arrays.size_of(array)
            slots = self.arrays.slots(array, self.arrays.cache_ids)
            lru.ids = [cache_id for cache_id, pointer in enumerate(slots) if pointer]
            if lru.ids:
                lru.list_lru_one_objects = len(lru.ids)
                lru.list_lru_one_bytes = len(lru.ids) * self.size_of_object(slots[lru.ids[0]])
            if self.has_memcg_items(alive):
                self.gather(
                    lru,
                    [
                        (memcg_id, pointer)
                        for memcg_id, pointer in self.arrays.at(array, self.arrays.live_ids)
                        if pointer
                    ],
                )
            checked.append(alive)
        self.check(checked)
        self.arrays.check()

    def arrays_of(self, state):
        return [*super().arrays_of(state), *([state.fields.mlrus] if state.fields else [])]


class _Xarray(_PerMemcg):
    """Since bbca91cca9a9, v5.18: an xarray by memcg id."""

    def __init__(self, prog, found, memcgs, likely, verify):
        super().__init__(prog, found, {"xa_head": "xa.xa_head"})
        self.xarrays = Xarrays(prog)
        self.xa_offset = offsetof(layouts.holder_type(prog), "xa")
        self.xa_node_bytes = prog["radix_tree_node_cachep"].size.value_()

    def read(self):
        checked = []
        for alive in self.alive():
            # Since v6.1 (and in stable kernels) an unaware list keeps an empty xarray.
            alive.lru.memcg_aware = alive.memcg_aware is not False
            alive.lru.nodes = self.nr_node_ids
            if alive.lru.memcg_aware:
                checked.append(alive)
        heads = {alive.holder + self.xa_offset: alive.fields.xa_head for alive in checked}
        objects, xa_nodes = self.xarrays.read(heads)
        for alive in checked:
            lru, xa = alive.lru, alive.holder + self.xa_offset
            entries = objects[xa]
            lru.ids = [memcg_id for memcg_id, _ in entries]
            lru.xa_node_bytes = xa_nodes[xa] * self.xa_node_bytes
            if entries:
                lru.list_lru_one_objects = len(entries)
                lru.list_lru_one_bytes = len(entries) * self.size_of_object(entries[0][1])
            if self.has_memcg_items(alive):
                self.gather(lru, entries)
        self.check(checked)


_WALKS = {
    "array": _PerNode,
    "array_rcu": _PerNode,
    "mlrus": _Mlrus,
    "mlrus_lazy": _Mlrus,
    "xarray": _Xarray,
    "xarray_lock": _Xarray,
    "ext_mlrus": _Mlrus,
    "ext_mlrus_lazy": _Mlrus,
    "ext_xarray": _Xarray,
}
