"""Every list_lru of the kernel: its owner, its bytes as allocated, and the items on its lists.

For the eager layouts the number of objects is computed, not counted: one for each id that the pointer array of a node
has, which is memcg_nr_cache_ids outside a doubling. The lists are read only where list_lru_node.nr_items counts items
of memcgs, and only the lists of online memcgs: when a memcg goes offline its items move to its parent
(memcg_drain_all_list_lrus(), since v4.0).
"""

from collections import namedtuple

from drgn import offsetof, sizeof

from ..access.memory import Members, has_member, is_running, read_each
from ..status import CollectError
from . import layouts, owners, superblocks
from .nodes import nodes_in_state, nr_node_ids
from .pointer_arrays import PointerArrays
from .slab import allocation
from .xarrays import Xarrays

# Objects queued before they are read together; bounds the memory that they take to about 100 MB.
_MAX_QUEUED_OBJECTS = 1 << 18


class ListLru:
    """A ``struct list_lru`` and its contents; the fields are columns of the table ``list_lrus``."""

    def __init__(self, ownership):
        self.address, self.owner, self.superblock, self.name, self.position = ownership
        self.memcg_aware = False
        self.nodes = 0
        # The ids for which each of its pointer arrays has room and, on an eager kernel, objects.
        self.cache_ids = None
        self.list_lru_one_objects = 0
        self.list_lru_one_bytes = 0
        self.pointer_array_bytes = 0
        self.node_array_bytes = 0
        self.xa_node_bytes = 0
        self.root_items = 0
        self.memcg_items = 0
        # Index of each memcg with items to their number. The index is kmemcg_id up to v5.17, then memcg->id.id.
        self.items_by_id = {}
        # Indices of the memcgs that have an entry, in the lazy layouts.
        self.ids = []

    @property
    def total_bytes(self):
        """Bytes of the list_lru's objects, arrays and xarray nodes."""
        return self.list_lru_one_bytes + self.pointer_array_bytes + self.node_array_bytes + self.xa_node_bytes


class Findings:
    """Result of the walk over the list_lrus.

    :ivar list_lrus: list of ListLru.
    :ivar layout: see layouts.
    :ivar cache_ids: memcg_nr_cache_ids, or None.
    :ivar growing_to: memcg_nr_cache_ids after the doubling that is under way, or None.
    :ivar object_bytes: allocated bytes of one list_lru_one (eager) or list_lru_memcg (lazy), None without any.
    :ivar object_cache: the ``struct kmem_cache *`` of the sampled object, or None.
    :ivar destroyed_lrus: number of list_lrus whose memory was being freed; they are counted as empty.
    :ivar race_notes: a line for each change during the walk; empty on a consistent kernel.
    :ivar departed_superblocks: addresses of the superblocks that went away during the walk; their list_lrus are left
        out.
    """

    def __init__(self, layout):
        self.layout = layout
        self.list_lrus = []
        self.cache_ids = None
        self.growing_to = None
        self.object_bytes = None
        self.object_cache = None
        self.destroyed_lrus = 0
        self.race_notes = []
        self.departed_superblocks = set()


def walk(prog, layout, sbs, memcgs, likely_memcgs=None, verify=False):
    """Find and size all list_lrus.

    :param layout: from layouts.detect(), not ``none``.
    :param sbs: list of SuperBlock.
    :param memcgs: list of Memcg.
    :param likely_memcgs: address of a list_lru to the Memcgs that probably have its items. They are read first, the
        other memcgs only if items are missing.
    :param verify: measure every pointer array and read every slot.
    :return: Findings.
    :raises CollectError: ``bad_core``: a list does not end, arrays are missing or were replaced during the walk, or an
        array differs from the sample.
    """
    findings = Findings(layout)
    findings.list_lrus = [ListLru(ownership) for ownership in owners.find(prog, sbs)]
    walker = _WALKS[layout](prog, findings, memcgs, likely_memcgs or {}, verify)
    walker.read()
    if is_running(prog):
        _drop_departed(prog, findings, sbs, walker)
    for lru in findings.list_lrus:
        if lru.memcg_aware and not lru.nodes:
            raise CollectError("bad_core", "list_lru 0x%x is memcg-aware and has no arrays for memcgs" % lru.address)
    return findings


def _drop_departed(prog, findings, sbs, walker):
    """Drop the list_lrus that went away during the walk, and check that the others still have the arrays measured.

    The kernel calls list_lru_destroy() before it takes the superblock off its list. So the superblocks are read again
    after the arrays. They are also read before the arrays, because pointers in freed memory lead anywhere.
    """
    findings.departed_superblocks = _departed_superblocks(prog, sbs)
    remaining_lrus = [lru for lru in findings.list_lrus if lru.superblock not in findings.departed_superblocks]
    replaced_lrus = walker.find_replaced(remaining_lrus)
    findings.departed_superblocks |= _departed_superblocks(prog, sbs)
    for lru in replaced_lrus:
        if lru.superblock in findings.departed_superblocks:
            continue
        if lru.superblock or lru.memcg_aware:
            raise CollectError("bad_core", "the arrays of list_lru 0x%x were replaced during the walk" % lru.address)
        # For example one of the two of an xfs that was unmounted. An unaware list_lru has only a node array.
        findings.race_notes.append("list_lru 0x%x went away during the walk" % lru.address)
        findings.list_lrus.remove(lru)
    if findings.departed_superblocks:
        findings.race_notes.append("%d superblocks went away during the walk" % len(findings.departed_superblocks))
        findings.list_lrus = [lru for lru in findings.list_lrus if lru.superblock not in findings.departed_superblocks]


def _departed_superblocks(prog, sbs):
    """Return the addresses of the superblocks that are no longer on ``super_blocks``.

    A new superblock at the same address has a different root. A superblock whose mount was not complete when it was
    first read had no root then.
    """
    roots = superblocks.root_by_superblock(prog)
    return {sb.address for sb in sbs if sb.address not in roots or sb.root not in (0, roots[sb.address])}


# A list_lru as read at one moment.
# lru: the ListLru. holder: address of the struct that contains ``node`` (see layouts.holder_type()). fields: members of
# the holder, None without a holder. memcg_aware: list_lru.memcg_aware, None without that member. nodes: members of each
# list_lru_node, empty for a destroyed list_lru.
_State = namedtuple("_State", "lru holder fields memcg_aware nodes")


def _find_destroyed(states):
    """Return the ListLrus in the middle of list_lru_destroy().

    It takes a list_lru off the kernel's list, frees its objects and arrays without clearing the pointers to them, then
    frees the node array, and clears only the pointer to that. Since commit 3eef11279ba5 ("mm: list_lru: only add
    memcg-aware lrus to the global lru list") (in v5.16) the list has only memcg-aware list_lrus.

    :raises CollectError: ``bad_core``: a superblock has two of them, which the kernel destroys one after the other, so
        the kernel's list is broken.
    """
    lrus = [
        state.lru for state in states if state.nodes and state.memcg_aware is not False and state.lru.position is None
    ]
    if len({lru.superblock for lru in lrus}) < len(lrus):
        raise CollectError("bad_core", "both list_lrus of a superblock are missing on the kernel's list of list_lrus")
    return set(lrus)


class _Walk:
    """Base of the walks of all layouts: reads the structs and node arrays, counts the items on the memcgs' lists.

    A subclass finds the lists of the memcgs.

    :param holder_members: members of the holder that lead to these lists, as for Members.
    :param node_members: members of struct list_lru_node that lead to these lists.
    """

    def __init__(self, prog, findings, holder_members=(), node_members=()):
        self.prog = prog
        self.findings = findings
        self.holder_paths = dict(holder_members, node="node")
        self.holder_bytes = sizeof(layouts.holder_type(prog))
        self.nr_node_ids = nr_node_ids(prog)
        node_type = prog.type("struct list_lru_node")
        self.node_bytes = sizeof(node_type)
        paths = dict(node_members, root_items="lru.nr_items")
        # Since commit fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13) nr_items is an
        # atomic_long_t. The member exists since commit 2c80cd57c743 ("mm/list_lru.c: fix list_lru_count_node() to be
        # race free") (in v4.13).
        if has_member(node_type, "nr_items.counter"):
            paths["nr_items"] = "nr_items.counter"
        elif has_member(node_type, "nr_items"):
            paths["nr_items"] = "nr_items"
        self.node = Members(prog, node_type, **paths)
        self.has_nr_items = "nr_items" in paths
        self.list_lru_one = Members(prog, "struct list_lru_one", nr_items="nr_items")
        # Size of the struct with a memcg's lists, and the offset of each list_lru_one in it.
        self.struct_bytes = self.list_lru_one.end
        self.list_lru_one_offsets = (0,)
        self.size_by_kind = {}
        self.queue = []
        self.states = []

    def live_states(self):
        """Yield the _State of each list_lru that is not destroyed or being destroyed.

        Sizes its node array and counts the items of the root memcg.
        """
        self.states = self.read_states(self.findings.list_lrus)
        destroyed_lrus = _find_destroyed(self.states)
        self.findings.destroyed_lrus = len(destroyed_lrus)
        for state in self.states:
            if not state.nodes or state.lru in destroyed_lrus:
                continue
            lru = state.lru
            lru.node_array_bytes = self.size_of("node array", state.fields.node, self.node_bytes * self.nr_node_ids)
            if state.holder != lru.address:
                lru.node_array_bytes += self.size_of("ext", state.holder, self.holder_bytes)
            lru.root_items = sum(max(0, node.root_items) for node in state.nodes)
            yield state

    def read_states(self, lrus):
        """Return the _State of each ListLru."""
        list_lru_type, holder_type = self.prog.type("struct list_lru"), layouts.holder_type(self.prog)
        holder = Members(self.prog, holder_type, **self.holder_paths)
        data = read_each(self.prog, [lru.address for lru in lrus], sizeof(list_lru_type))
        memcg_aware = dict.fromkeys(data)
        # Since commit 3e8589963773 ("memcg: make it work on sparse non-0-node systems") (in v5.2).
        if has_member(list_lru_type, "memcg_aware"):
            members = Members(self.prog, list_lru_type, memcg_aware="memcg_aware")
            memcg_aware = {address: bool(members.decode(data[address]).memcg_aware) for address in data}
        holder_addresses = {address: address for address in data}
        if has_member(list_lru_type, "ext"):
            members = Members(self.prog, list_lru_type, ext="ext")
            holder_addresses = {address: members.decode(data[address]).ext for address in data}
            data = read_each(self.prog, [ext for ext in holder_addresses.values() if ext], sizeof(holder_type))
        fields_by_holder = {address: holder.decode(data[address]) for address in data}
        # list_lru_destroy() clears the node array pointer while the superblock is still on its list.
        node_arrays = [fields.node for fields in fields_by_holder.values() if fields.node]
        data = read_each(self.prog, node_arrays, self.node_bytes * self.nr_node_ids)
        states = []
        for lru in lrus:
            address = holder_addresses[lru.address]
            fields, nodes = fields_by_holder.get(address), []
            if fields and fields.node:
                node_array = data[fields.node]
                nodes = [self.node.decode(node_array, nid * self.node_bytes) for nid in range(self.nr_node_ids)]
            states.append(_State(lru, address, fields, memcg_aware[lru.address], nodes))
        return states

    @staticmethod
    def in_kernel_order(states):
        """Return the states in the order in which the kernel doubles their pointer arrays."""
        return sorted(states, key=lambda state: (state.lru.position is None, state.lru.position or 0))

    def size_of(self, kind, address, request_bytes):
        """Return the bytes of an object of a kind whose objects all have one size; measures the first one."""
        if kind not in self.size_by_kind:
            self.size_by_kind[kind], _ = allocation(self.prog, address, request_bytes)
        return self.size_by_kind[kind]

    def size_of_object(self, address):
        """Return the bytes of an object with a memcg's list_lru_one; measures the first one."""
        if self.findings.object_bytes is None:
            allocated = allocation(self.prog, address, self.struct_bytes)
            self.findings.object_bytes, self.findings.object_cache = allocated
        return self.findings.object_bytes

    def memcg_items(self, node):
        """Return the number of a node's items on memcgs' lists, or None where the kernel does not count them."""
        return node.nr_items - node.root_items if self.has_nr_items else None

    def queue_objects(self, lru, objects):
        """Queue objects whose items count_items() adds to lru.items_by_id.

        :param objects: pairs (index of the memcg, address).
        """
        self.queue += [(lru, memcg_id, address) for memcg_id, address in objects]
        if len(self.queue) > _MAX_QUEUED_OBJECTS:
            self.count_items()

    def count_items(self):
        """Read the queued objects and count their items."""
        data = read_each(self.prog, [address for _, _, address in self.queue], self.struct_bytes)
        for lru, memcg_id, address in self.queue:
            counts = (self.list_lru_one.decode(data[address], offset).nr_items for offset in self.list_lru_one_offsets)
            # Negative for a moment while the kernel runs. Since v6.13 LONG_MIN marks the list of a dead memcg.
            items = sum(count for count in counts if count > 0)
            if items:
                lru.items_by_id[memcg_id] = lru.items_by_id.get(memcg_id, 0) + items
        self.queue = []

    def check_items(self, states):
        """Compare the items counted on the lists of each _State with list_lru_node.nr_items."""
        self.count_items()
        for state in states:
            lru = state.lru
            lru.memcg_items = sum(lru.items_by_id.values())
            if self.has_nr_items:
                nr_items = sum(map(self.memcg_items, state.nodes))
                if nr_items != lru.memcg_items:
                    self.findings.race_notes.append(
                        "list_lru 0x%x: %d items on the lists of online memcgs, nr_items counts %d"
                        % (lru.address, lru.memcg_items, nr_items)
                    )

    def find_replaced(self, lrus):
        """Return the ListLrus whose arrays were freed, allocated or replaced since they were first read."""
        first_addresses = {state.lru.address: self.array_addresses(state) for state in self.states}
        return [
            state.lru
            for state in self.read_states(lrus)
            if self.array_addresses(state) != first_addresses[state.lru.address]
        ]

    def array_addresses(self, state):
        """Return the addresses of a list_lru's arrays."""
        return [state.fields.node] if state.fields else []


class _PerNode(_Walk):
    """v4.0 to v5.17: each node has a pointer array with a list_lru_one for every id."""

    def __init__(self, prog, findings, memcgs, likely_memcgs, verify):
        super().__init__(prog, findings, node_members={"memcg_lrus": "memcg_lrus"})
        self.arrays = PointerArrays(prog, memcgs)
        findings.cache_ids = self.arrays.cache_ids
        self.likely_memcgs = likely_memcgs
        self.verify = verify

    def read(self):
        arrays_with_items = []
        states = list(self.live_states())
        arrays_by_state = [[node.memcg_lrus for node in state.nodes if node.memcg_lrus] for state in states]
        self.arrays.measure(
            [node.memcg_lrus for state in self.in_kernel_order(states) for node in state.nodes if node.memcg_lrus],
            self.list_lru_one_offsets,
        )
        self.findings.growing_to = self.arrays.growing_to
        for state, arrays in zip(states, arrays_by_state):
            lru = state.lru
            lru.memcg_aware = state.memcg_aware
            if lru.memcg_aware is None:  # The kernel itself then checks for the first node's array.
                lru.memcg_aware = bool(state.nodes[0].memcg_lrus)
            if not arrays:
                continue
            lru.nodes = len(arrays)
            lru.pointer_array_bytes = sum(map(self.arrays.size_of, arrays))
            ids = list(map(self.arrays.ids_of, arrays))
            lru.cache_ids = min(ids)
            lru.list_lru_one_objects = sum(ids)
            if lru.list_lru_one_objects:
                lru.list_lru_one_bytes = lru.list_lru_one_objects * self.size_of_first_object(arrays[0])
            if self.verify:
                for array in arrays:
                    self.arrays.verify(array, self.list_lru_one_offsets)
            arrays = [node.memcg_lrus for node in state.nodes if node.memcg_lrus and self.memcg_items(node) != 0]
            if arrays:
                arrays_with_items.append((state, arrays))
        self.find_items(arrays_with_items)
        self.check_items([state for state, arrays in zip(states, arrays_by_state) if arrays])
        self.arrays.check_length()

    def find_items(self, arrays_with_items):
        """Count the items of the likely memcgs, and of all memcgs where items are missing.

        One list_lru can have 20,000 lists.

        :param arrays_with_items: pairs (_State, addresses of the pointer arrays of the nodes that count items).
        """
        for state, arrays in arrays_with_items:
            likely_memcgs = self.likely_memcgs.get(state.lru.address, ())
            ids = sorted(memcg.cache_id for memcg in likely_memcgs if memcg.cache_id is not None)
            for array in arrays:
                self.queue_objects(state.lru, self.arrays.entries(array, ids))
        self.count_items()
        for state, arrays in arrays_with_items:
            items = sum(state.lru.items_by_id.values())
            if not self.has_nr_items or items != sum(map(self.memcg_items, state.nodes)):
                state.lru.items_by_id = {}
                for array in arrays:
                    self.queue_objects(state.lru, self.arrays.entries(array, self.arrays.online_ids))

    def array_addresses(self, state):
        return [*super().array_addresses(state), *(node.memcg_lrus for node in state.nodes)]

    def size_of_first_object(self, array):
        """Return the bytes of a pointer array's first object; reads the array only if no object has been measured."""
        if self.findings.object_bytes is not None:
            return self.findings.object_bytes
        (address,) = self.arrays.slots(array, 1)
        return self.size_of_object(address)


class _PerMemcg(_Walk):
    """One object for each memcg, with a list_lru_one for each of nr_node_ids nodes.

    Since commit 6a6b7b77cc0f ("mm: list_lru: transpose the array of per-node per-memcg lru lists") (in v5.18).
    """

    def __init__(self, prog, findings, holder_members):
        super().__init__(prog, findings, holder_members)
        try:
            object_type = prog.type("struct list_lru_per_memcg")
        except LookupError:
            # Since commit d70110704d2d ("mm: list_lru: rename list_lru_per_memcg to list_lru_memcg") (in v5.18).
            object_type = prog.type("struct list_lru_memcg")
        list_lru_one_bytes = sizeof(prog.type("struct list_lru_one"))
        first_offset = offsetof(object_type, "node")
        # memcg_init_list_lru_one() does not initialize the list_lru_one of an impossible node.
        possible_nodes = nodes_in_state(prog, "N_POSSIBLE")
        self.list_lru_one_offsets = [first_offset + list_lru_one_bytes * nid for nid in possible_nodes]
        self.struct_bytes = first_offset + list_lru_one_bytes * self.nr_node_ids

    def has_memcg_items(self, state):
        return any(self.memcg_items(node) != 0 for node in state.nodes)


class _Mlrus(_PerMemcg):
    """One pointer array, in which lazy kernels have NULL pointers.

    Lazy since commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed"), and an array until commit
    bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (both in v5.18).
    """

    def __init__(self, prog, findings, memcgs, likely_memcgs, verify):
        super().__init__(prog, findings, {"mlrus": "mlrus"})
        self.arrays = PointerArrays(prog, memcgs)
        findings.cache_ids = self.arrays.cache_ids

    def read(self):
        states = []
        for state in self.live_states():
            state.lru.memcg_aware = bool(state.fields.mlrus) if state.memcg_aware is None else state.memcg_aware
            if state.lru.memcg_aware and state.fields.mlrus:
                states.append(state)
        is_lazy = self.findings.layout in layouts.LAZY
        self.arrays.measure(
            [state.fields.mlrus for state in self.in_kernel_order(states)], () if is_lazy else self.list_lru_one_offsets
        )
        self.findings.growing_to = self.arrays.growing_to
        for state in states:
            lru, array = state.lru, state.fields.mlrus
            lru.nodes = 1
            lru.pointer_array_bytes = self.arrays.size_of(array)
            lru.cache_ids = self.arrays.ids_of(array)
            slots = self.arrays.slots(array, lru.cache_ids)
            lru.ids = [cache_id for cache_id, pointer in enumerate(slots) if pointer]
            if lru.ids:
                lru.list_lru_one_objects = len(lru.ids)
                lru.list_lru_one_bytes = len(lru.ids) * self.size_of_object(slots[lru.ids[0]])
            if self.has_memcg_items(state):
                entries = self.arrays.entries(array, self.arrays.online_ids)
                self.queue_objects(lru, [(memcg_id, pointer) for memcg_id, pointer in entries if pointer])
        self.check_items(states)
        self.arrays.check_length()

    def array_addresses(self, state):
        return [*super().array_addresses(state), *([state.fields.mlrus] if state.fields else [])]


class _Xarray(_PerMemcg):
    """An xarray indexed by memcg id.

    Since commit bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (in v5.18).
    """

    def __init__(self, prog, findings, memcgs, likely_memcgs, verify):
        super().__init__(prog, findings, {"xa_head": "xa.xa_head"})
        self.xarrays = Xarrays(prog)
        self.xa_offset = offsetof(layouts.holder_type(prog), "xa")
        self.xa_node_bytes = prog["radix_tree_node_cachep"].size.value_()

    def read(self):
        states = []
        for state in self.live_states():
            # Since v6.1 (and in stable kernels) an unaware list_lru has an empty xarray.
            state.lru.memcg_aware = state.memcg_aware is not False
            state.lru.nodes = self.nr_node_ids
            if state.lru.memcg_aware:
                states.append(state)
        heads = {state.holder + self.xa_offset: state.fields.xa_head for state in states}
        entries_by_xarray, xa_nodes = self.xarrays.read(heads)
        for state in states:
            lru, xa = state.lru, state.holder + self.xa_offset
            entries = entries_by_xarray[xa]
            lru.ids = [memcg_id for memcg_id, _ in entries]
            lru.xa_node_bytes = xa_nodes[xa] * self.xa_node_bytes
            if entries:
                lru.list_lru_one_objects = len(entries)
                lru.list_lru_one_bytes = len(entries) * self.size_of_object(entries[0][1])
            if self.has_memcg_items(state):
                self.queue_objects(lru, entries)
        self.check_items(states)


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
