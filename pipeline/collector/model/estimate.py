"""Estimates of what the list_lrus of an eager kernel would hold on a lazy one, and the reverse.

Importable without drgn. A lazy kernel allocates an entry in a list_lru for a memcg and all its ancestors but the root
when the memcg is first charged for an object that the list counts (memcg_list_lru_alloc(), v5.18). It keeps the entry
until the memcg is offline. So every memcg that is charged for an object now has an entry, and so have some memcgs
whose objects are freed again.
"""

from collections import Counter, namedtuple

from . import cost

# Lazy kernels to estimate: name, and sizeof(struct list_lru_one) where it differs from the audited kernel's. Since
# commit fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13) the struct has a lock.
TARGETS = {"5.18": ("v5.18-6.12", None), "6.13": ("v6.13+", 32)}
DEFAULT_TARGET = "5.18"


class Entries(namedtuple("Entries", "memcgs object_bytes xa_node_bytes")):
    """The entries of one list_lru on a lazy kernel: their Memcgs, and the bytes beside the node array."""

    __slots__ = ()

    @property
    def total_bytes(self):
        return self.object_bytes + self.xa_node_bytes


class LazyEstimate:
    """Estimate of the bytes that an eager kernel's list_lrus would hold on a lazy kernel.

    :param sizes: cost.Sizes of the lazy kernel.
    :param memcgs: list of Memcg.
    :param charged_memcgs: address of each list_lru with charged objects to the set of Memcgs that own one, or None
        where charged objects are not known.
    :param is_kmem_disabled: whether memcgs are not charged for kernel memory, so that none has an entry.
    :param transient_lists: list_lrus in which every running program allocates, pairs (superblock's address, name).
    :param kernel_mounts: addresses of superblocks whose objects can be opened but not named.
    :param imputed_memcgs: as charged_memcgs, the Memcgs that are expected to own objects outside of a sample of slabs.
    :ivar lists_charged: for each Memcg, the number of the list_lrus so far with objects that it is charged for.
    """

    def __init__(
        self,
        sizes,
        memcgs,
        charged_memcgs,
        is_kmem_disabled=False,
        transient_lists=(),
        kernel_mounts=(),
        imputed_memcgs=None,
    ):
        self._sizes = sizes
        self._charged_memcgs = charged_memcgs
        self._imputed_memcgs = imputed_memcgs or {}
        self._by_cache_id = {memcg.cache_id: memcg for memcg in memcgs if memcg.cache_id is not None}
        self._entries_by_memcgs = {}
        online_memcgs = [memcg for memcg in memcgs if memcg.online and memcg.parent]
        # Up to v4.5 memcgs without an id are among them: they too would have entries on a lazy kernel.
        self._all_entries = self._entries(() if is_kmem_disabled else online_memcgs)
        self._active_memcgs = self._entries(frozenset().union(*(charged_memcgs or {}).values())).memcgs
        self._transient_lists = transient_lists
        self._kernel_mounts = kernel_mounts
        self.lists_charged = Counter()
        self._list_counts = Counter()

    def columns(self, lru):
        """Return the columns of the estimate for a ListLru."""
        with_items = {self._by_cache_id[cache_id] for cache_id in lru.items_by_id}
        low, high = self._entries(with_items), self._all_entries if lru.memcg_aware else self._entries(())
        owners = charged_entries = None
        entries = high
        if self._charged_memcgs is not None:
            # Objects on a memcg's list are charged to it; a list_lru that is not memcg-aware has no entries.
            owners = with_items | (self._charged_memcgs.get(lru.address, set()) if lru.memcg_aware else set())
            self.lists_charged.update(owners)
            entries = charged_entries = self._entries(owners)
            if self._imputed_memcgs and lru.memcg_aware:
                entries = self._entries(owners | self._imputed_memcgs.get(lru.address, set()))
            if self._has_all_active_memcgs(lru, entries):
                entries = self._entries(entries.memcgs | self._active_memcgs)
        self._list_counts[entries.memcgs] += 1
        return {
            "memcgs_charged": owners if owners is None else len(owners),
            "lazy_low_bytes": lru.node_array_bytes + low.total_bytes,
            "lazy_charged_bytes": charged_entries and lru.node_array_bytes + charged_entries.total_bytes,
            "lazy_bytes": lru.node_array_bytes + entries.total_bytes,
            "lazy_high_bytes": lru.node_array_bytes + high.total_bytes,
            "lazy_memcgs": len(entries.memcgs),
            "lazy_object_bytes": entries.object_bytes,
            "lazy_xa_node_bytes": entries.xa_node_bytes,
            "lazy_empty_bytes": None,
            "eager_bytes": lru.total_bytes,
        }

    @property
    def lazy_lists(self):
        """The number of list_lrus so far in which each Memcg is expected to have an entry."""
        lists = Counter()
        for memcgs, count in self._list_counts.items():
            for memcg in memcgs:
                lists[memcg] += count
        return lists

    def max_pair_bytes(self):
        """Return the most bytes that one more memcg in a list_lru takes, those in an empty one; 0 without a memcg."""
        return max((self._entries((memcg,)).total_bytes for memcg in self._all_entries.memcgs), default=0)

    def _has_all_active_memcgs(self, lru, entries):
        """Whether each memcg that is charged for any object is expected to have an entry in a list_lru.

        True for a transient list, and for a kernel mount once a fifth of these memcgs own an object there now.
        Measured on lazy kernels with busybox, systemd and runc as userland: docs/accuracy.md.
        """
        if (lru.superblock, lru.name) in self._transient_lists:
            return True
        return lru.superblock in self._kernel_mounts and 5 * len(entries.memcgs) >= len(self._active_memcgs) > 0

    def _entries(self, memcgs):
        """Return the Entries of memcgs and their ancestors."""
        memcgs = _with_ancestors(memcgs)
        if memcgs not in self._entries_by_memcgs:
            # A lazy kernel indexes by memcg->id.id. Before v4.7 css.id is used, which was the same number then.
            ids = [memcg.css_id if memcg.memcg_id is None else memcg.memcg_id for memcg in memcgs]
            _, object_bytes, xa_node_bytes = cost.lazy_bytes(self._sizes, ids)
            self._entries_by_memcgs[memcgs] = Entries(memcgs, object_bytes, xa_node_bytes)
        return self._entries_by_memcgs[memcgs]


class EagerEstimate:
    """Estimate of the bytes that a lazy kernel's list_lrus would hold on an eager kernel.

    :param sizes: cost.Sizes of the eager kernel.
    :param memcgs, charged_memcgs: as for LazyEstimate.
    :param cache_ids: memcg_nr_cache_ids, or None where this kernel has none.
    :param possible_nodes: number of possible nodes.
    :param object_bytes: of one list_lru_memcg of this kernel as allocated, or None without any.
    :ivar lists_charged: as for LazyEstimate.
    :ivar lazy_lists: for each Memcg, the number of the list_lrus so far in which it has an entry.
    """

    def __init__(self, sizes, memcgs, charged_memcgs, cache_ids, possible_nodes, object_bytes):
        self._charged_memcgs = charged_memcgs
        self._object_bytes = object_bytes or 0
        self._by_id = {memcg.cache_id: memcg for memcg in memcgs if memcg.cache_id is not None}
        self._eager_bytes = _eager_bytes(sizes, memcgs, cache_ids, possible_nodes)
        self.lists_charged = Counter()
        self.lazy_lists = Counter()

    def columns(self, lru):
        """Return the columns of the estimate for a ListLru."""
        owners = None
        if self._charged_memcgs is not None:
            owners = self._charged_memcgs.get(lru.address, set())
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
            # The entries are in a pointer array, not an xarray, before commit bbca91cca9a9 ("mm: list_lru: replace
            # linear array with xarray") (in v5.18).
            "lazy_xa_node_bytes": lru.xa_node_bytes + lru.pointer_array_bytes,
            "lazy_empty_bytes": (len(lru.ids) - len(lru.items_by_id)) * self._object_bytes,
            "eager_bytes": lru.node_array_bytes + (self._eager_bytes if lru.memcg_aware else 0),
        }


def _eager_bytes(sizes, memcgs, cache_ids, possible_nodes):
    """Return the bytes of one memcg-aware list_lru on an eager kernel, without its node array.

    A kernel without memcg_nr_cache_ids is taken to need as many as the highest id of its online memcgs: ids are given
    out lowest first, so that number was in use at once. memcg->id.id starts at 1, which is the root's.
    """
    if cache_ids is None:
        ids = [memcg.memcg_id for memcg in memcgs if memcg.cache_id is not None and memcg.parent]
        cache_ids = cost.cache_ids_for(max(max(ids) - 1, len(ids))) if ids else 0
    _, arrays, objects = cost.eager_bytes(sizes, possible_nodes, cache_ids)
    return arrays + objects


def _with_ancestors(memcgs):
    """Return the frozenset of memcgs and their ancestors without the root."""
    ancestors = set()
    for memcg in memcgs:
        while memcg.parent and memcg not in ancestors:
            ancestors.add(memcg)
            memcg = memcg.parent
    return frozenset(ancestors)
