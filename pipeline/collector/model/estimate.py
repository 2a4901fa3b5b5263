"""What the list_lrus of an eager kernel would hold on a lazy one, and the reverse.

A lazy kernel makes an entry in a list_lru for a memcg and all its ancestors but the root when the memcg is first
charged for an object that the list counts (memcg_list_lru_alloc(), v5.18), and keeps it until the memcg is offline.
So whoever is charged for an object now has one, and so have some of those whose objects are freed again.
"""

from collections import Counter, namedtuple

from drgn import container_of, sizeof

from ..walk import slab, superblocks
from ..walk.nodes import nr_node_ids
from . import cost

_LONG_BYTES = 8
_SB_KERNMOUNT = 1 << 22

# The kernels to estimate: their name, and sizeof(struct list_lru_one) where it is not this kernel's own:
# fb56fdf8b9a2 (v6.13) put a lock into it.
TARGETS = {"5.18": ("v5.18-6.12", None), "6.13": ("v6.13+", 32)}
DEFAULT_TARGET = "5.18"


class Entries(namedtuple("Entries", "memcgs object_bytes xa_node_bytes")):
    """The Memcgs with an entry in one list_lru of a lazy kernel, and what it holds for them beside its node array."""

    __slots__ = ()

    @property
    def total_bytes(self):
        return self.object_bytes + self.xa_node_bytes


class OfEager:
    """What an eager kernel's list_lrus would hold on a lazy kernel.

    :param sbs: of SuperBlock. :param cgroups: of Memcg. :param charges: charges.Charges, or None where charged
        objects are not known. :param target: the lazy kernel, a key of TARGETS.
    :ivar lists_charged: of each Memcg, how many of the list_lrus so far have objects that it is charged for.
    """

    def __init__(self, prog, sbs, cgroups, charges, target):
        self._sizes = _sizes(prog, TARGETS[target][1] or sizeof(prog.type("struct list_lru_one")))
        self._charges = charges
        self._by_cache_id = {memcg.cache_id: memcg for memcg in cgroups if memcg.cache_id is not None}
        self._known = {}
        online = [memcg for memcg in cgroups if memcg.online and memcg.parent]
        # Up to v4.5 also memcgs without an id would have entries on a lazy kernel.
        nobody = not all(memcg.cache_id is not None for memcg in online) and nokmem(prog)
        self._all = self._entries(() if nobody else online)
        if charges:
            self._used = self._entries(frozenset().union(*charges.by_list_lru.values())).memcgs
            self._outliving = _outliving(prog, sbs)
            self._internal = {sb.address for sb in sbs if sb.kernel_internal and sb.s_flags & _SB_KERNMOUNT}
        self.lists_charged = Counter()
        self._counts = Counter()

    def columns(self, lru):
        """Return the columns of the estimate for a ListLru."""
        with_items = {self._by_cache_id[cache_id] for cache_id in lru.items_by_id}
        low, high = self._entries(with_items), self._all if lru.memcg_aware else self._entries(())
        owners = charged = None
        expected = high
        if self._charges:
            # What is on a memcg's list is charged to it; a list_lru that is not memcg-aware has no entries.
            owners = with_items | (self._charges.by_list_lru.get(lru.address, set()) if lru.memcg_aware else set())
            self.lists_charged.update(owners)
            expected = charged = self._entries(owners)
            if self._outlives(lru, charged):
                expected = self._entries(charged.memcgs | self._used)
        self._counts[expected.memcgs] += 1
        return {
            "memcgs_charged": owners if owners is None else len(owners),
            "lazy_low_bytes": lru.node_array_bytes + low.total_bytes,
            "lazy_charged_bytes": charged and lru.node_array_bytes + charged.total_bytes,
            "lazy_bytes": lru.node_array_bytes + expected.total_bytes,
            "lazy_high_bytes": lru.node_array_bytes + high.total_bytes,
            "lazy_memcgs": len(expected.memcgs),
            "lazy_object_bytes": expected.object_bytes,
            "lazy_xa_node_bytes": expected.xa_node_bytes,
            "lazy_empty_bytes": None,
            "eager_bytes": lru.total_bytes,
        }

    @property
    def lazy_lists(self):
        """Of each Memcg, in how many of the list_lrus so far it is expected to have an entry."""
        found = Counter()
        for memcgs, count in self._counts.items():
            for memcg in memcgs:
                found[memcg] += count
        return found

    def _outlives(self, lru, charged):
        """Return whether whoever is charged for anything is expected to have an entry.

        That is so for pipes, the initial proc, and names looked up on the root filesystem and /run; and for what can
        only be opened, not named (sockfs, anon_inodefs, nsfs), once a fifth of the memcgs in use has one open now.
        Measured on lazy kernels with busybox, systemd and runc as userland: docs/accuracy.md.
        """
        if (lru.superblock, lru.name) in self._outliving:
            return True
        return lru.superblock in self._internal and 5 * len(charged.memcgs) >= len(self._used) > 0

    def _entries(self, memcgs):
        """Return the Entries of memcgs and their ancestors."""
        memcgs = _with_ancestors(memcgs)
        if memcgs not in self._known:
            # memcg->id.id is what a lazy kernel indexes by; before v4.7 css.id, then the same number, stands in.
            ids = [memcg.css_id if memcg.memcg_id is None else memcg.memcg_id for memcg in memcgs]
            _, *held = cost.lazy_bytes(self._sizes, ids)
            self._known[memcgs] = Entries(memcgs, *held)
        return self._known[memcgs]


def _outliving(prog, sbs):
    """Return the list_lrus whose objects come and go with every program, as (superblock's address, name)."""
    found = {(sb.address, name) for sb in sbs if sb.fstype == b"pipefs" for name in ("dentry", "inode")}
    # super_blocks has the oldest first: the proc of the initial pid namespace.
    proc = next((sb.address for sb in sbs if sb.fstype == b"proc"), None)
    found |= {(proc, "dentry"), (proc, "inode")}
    # Programs look for files that are not there, such as nscd's socket.
    found.add((host_root(prog), "dentry"))
    run = {
        sb.address for sb in sbs if sb.mountpoint == b"/run" and superblocks.initial_namespace(prog) in sb.namespaces
    }
    return found | {(address, "dentry") for address in run}


def nokmem(prog):
    """Return whether the kernel was booted with cgroup.memory=nokmem (v4.5, 04823c833b32): nobody is charged."""
    try:
        return bool(prog["cgroup_memory_nokmem"])
    except LookupError:
        return False


def host_root(prog):
    """Return the address of the superblock of the host's root: that of init, the first task."""
    init = container_of(prog["init_task"].tasks.next, "struct task_struct", "tasks")
    return init.fs.root.mnt.mnt_sb.value_()


class OfLazy:
    """What a lazy kernel's list_lrus hold, and would hold on an eager kernel; else as OfEager.

    :param cache_ids: memcg_nr_cache_ids, or None where this kernel has none. :param possible_nodes: how many.
    """

    def __init__(self, prog, cgroups, charges, cache_ids, possible_nodes, object_bytes):
        self._charges = charges
        self._object_bytes = object_bytes or 0
        self._by_id = {memcg.cache_id: memcg for memcg in cgroups if memcg.cache_id is not None}
        self._eager = _eager_bytes(prog, cgroups, cache_ids, possible_nodes)
        self.lists_charged = Counter()
        self.lazy_lists = Counter()

    def columns(self, lru):
        """Return the columns of the estimate for a ListLru."""
        owners = None
        if self._charges:
            owners = self._charges.by_list_lru.get(lru.address, set())
            self.lists_charged.update(owners)
        self.lazy_lists.update(self._by_id[index] for index in lru.ids if index in self._by_id)
        return {
            "memcgs_charged": owners if owners is None else len(owners),
            "lazy_low_bytes": lru.total_bytes,
            "lazy_charged_bytes": None if owners is None else lru.total_bytes,
            "lazy_bytes": lru.total_bytes,
            "lazy_high_bytes": lru.total_bytes,
            "lazy_memcgs": len(lru.ids),
            "lazy_object_bytes": lru.list_lru_one_bytes,
            # The state of 5abc1e37afa0 itself still has a pointer array where an xarray came to be.
            "lazy_xa_node_bytes": lru.xa_node_bytes + lru.pointer_array_bytes,
            "lazy_empty_bytes": (len(lru.ids) - len(lru.items_by_id)) * self._object_bytes,
            "eager_bytes": lru.node_array_bytes + (self._eager if lru.memcg_aware else 0),
        }


def _eager_bytes(prog, cgroups, cache_ids, possible_nodes):
    """Return the bytes that an eager kernel holds in one memcg-aware list_lru beside its node array.

    Where this kernel has no memcg_nr_cache_ids it is what the highest id of an online memcg would need: ids are given
    lowest first, so as many were in use at once. memcg->id.id starts at 1, which is the root's.
    """
    if cache_ids is None:
        ids = [memcg.memcg_id for memcg in cgroups if memcg.cache_id is not None and memcg.parent]
        cache_ids = cost.cache_ids_for(max(max(ids) - 1, len(ids))) if ids else 0
    # struct list_lru_one before it had a lock: a list_head and a long.
    sizes = _sizes(prog, sizeof(prog.type("struct list_head")) + _LONG_BYTES)
    _, arrays, objects = cost.eager_bytes(sizes, possible_nodes, cache_ids)
    return arrays + objects


def _sizes(prog, one_bytes):
    return cost.Sizes(
        kmalloc=slab.kmalloc_sizes(prog),
        page=prog["PAGE_SIZE"].value_(),
        list_lru_node=sizeof(prog.type("struct list_lru_node")),
        list_lru_one=one_bytes,
        xa_node=prog["radix_tree_node_cachep"].size.value_(),
        nodes=nr_node_ids(prog),
    )


def _with_ancestors(memcgs):
    """Return memcgs and their ancestors without the root, as a frozenset."""
    closed = set()
    for memcg in memcgs:
        while memcg.parent and memcg not in closed:
            closed.add(memcg)
            memcg = memcg.parent
    return frozenset(closed)
