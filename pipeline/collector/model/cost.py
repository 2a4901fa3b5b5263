"""The cost model: what list_lrus hold on an eager and on a lazy kernel, in bytes as allocated.

Importable without drgn. Every size is an argument: the collector takes them from the audited kernel's own types
and slab caches, ``lru-audit estimate`` from X86_64.

Eager, v4.0 to v5.17: each memcg-aware list_lru has on each possible node an array of pointers with a slot, and a
list_lru_one, for every memcg id below memcg_nr_cache_ids. Lazy, since v5.18 (5abc1e37afa0, bbca91cca9a9): an
xarray by memcg id, with one list_lru_memcg that holds a list_lru_one for each of nr_node_ids.
"""

from collections import namedtuple

# Raised whenever the same memory would give another number.
MODEL_VERSION = 2

# struct rcu_head: the header of the pointer array since v4.17 (0c7c1bed7e13) and of struct list_lru_memcg.
_RCU_HEAD_BYTES = 16
_POINTER_BYTES = 8
_XA_CHUNK_SHIFT = 6

# What the commit message of 5abc1e37afa0 counts for a list_lru_one: an object of kmalloc-32.
FORMULA_OBJECT_BYTES = 32

# mm/memcontrol.c, memcg_alloc_cache_id(), v4.0 to v5.17
_MEMCG_CACHES_MIN_SIZE = 4
_MEMCG_CACHES_MAX_SIZE = 65535


class Sizes(namedtuple("Sizes", "kmalloc page list_lru_node list_lru_one xa_node nodes")):
    """What the model needs to know of a kernel.

    kmalloc: pairs (largest request, allocated bytes) ascending; page: bytes; list_lru_node, list_lru_one: sizeof();
    xa_node: allocated bytes; nodes: nr_node_ids.
    """

    __slots__ = ()

    def allocated(self, request):
        """Return the bytes that kmalloc() takes for a request: its cache's object, or pages in a power of two."""
        for largest, size in self.kmalloc:
            if request <= largest:
                return size
        pages = -(-request // self.page)
        return self.page << (pages - 1).bit_length()

    def node_array_bytes(self):
        """Return the bytes of ``struct list_lru_node node[nr_node_ids]``."""
        return self.allocated(self.nodes * self.list_lru_node)

    def pointer_array_bytes(self, cache_ids):
        """Return the bytes of one node's ``struct list_lru_memcg`` with its pointers, as kmalloc() gives it."""
        return self.allocated(_RCU_HEAD_BYTES + _POINTER_BYTES * cache_ids)

    def list_lru_one_bytes(self):
        """Return the bytes of one separately allocated ``struct list_lru_one``."""
        return self.allocated(self.list_lru_one)

    def list_lru_memcg_bytes(self):
        """Return the bytes of the lazy kernel's ``struct list_lru_memcg``, one list_lru_one a node."""
        return self.allocated(_RCU_HEAD_BYTES + self.list_lru_one * self.nodes)


# sizeof() and slab caches of Debian's and most other kernels for x86_64 with 4 KiB pages.
_X86_64_KMALLOC = tuple((n, n) for n in (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192))


def x86_64(nodes):
    """Return the Sizes of an x86_64 kernel of v5.x with as many NUMA nodes."""
    return Sizes(_X86_64_KMALLOC, 4096, list_lru_node=64, list_lru_one=24, xa_node=584, nodes=nodes)


def xa_nodes(ids):
    """Return how many struct xa_node an xarray needs to hold entries at these indices (lib/xarray.c).

    :param ids: the distinct indices, any iterable of int >= 0.
    """
    level = set(ids)
    count = 0
    highest = max(level, default=0)
    while highest:
        level = {index >> _XA_CHUNK_SHIFT for index in level}
        highest >>= _XA_CHUNK_SHIFT
        count += len(level)
    return count


def next_cache_ids(cache_ids):
    """Return what memcg_nr_cache_ids becomes when one more memcg is online than it has ids for."""
    return min(max(2 * (cache_ids + 1), _MEMCG_CACHES_MIN_SIZE), _MEMCG_CACHES_MAX_SIZE)


def cache_ids_for(memcgs):
    """Return what memcg_nr_cache_ids is once so many memcgs, without the root, have been online at once."""
    cache_ids = 0
    while cache_ids < min(memcgs, _MEMCG_CACHES_MAX_SIZE):
        cache_ids = next_cache_ids(cache_ids)
    return cache_ids


def formula_bytes(superblocks, nodes, cache_ids):
    """Return the commit message's figure: two lists a superblock, a list_lru_one a node and id."""
    return 2 * superblocks * nodes * cache_ids * FORMULA_OBJECT_BYTES


def eager_bytes(sizes, nodes, cache_ids):
    """Return the parts of one memcg-aware list_lru on an eager kernel: node array, pointer arrays, objects.

    :param nodes: the possible nodes; arrays and objects exist on these.
    """
    objects = nodes * cache_ids * sizes.list_lru_one_bytes()
    return sizes.node_array_bytes(), nodes * sizes.pointer_array_bytes(cache_ids), objects


def lazy_bytes(sizes, memcg_ids):
    """Return the parts of one list_lru on a lazy kernel: node array, list_lru_memcg objects, xarray nodes.

    :param memcg_ids: memcg->id.id of the memcgs that have an entry, a collection.
    """
    objects = len(memcg_ids) * sizes.list_lru_memcg_bytes()
    return sizes.node_array_bytes(), objects, xa_nodes(memcg_ids) * sizes.xa_node
