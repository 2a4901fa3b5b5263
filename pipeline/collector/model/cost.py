"""The cost model: the allocated bytes of list_lrus on an eager and on a lazy kernel.

Importable without drgn. Every size is an argument: the collector takes sizes from the audited kernel's own types
and slab caches, ``lru-audit estimate`` from x86_64().

An eager kernel, v4.0 to v5.17, allocates for each memcg-aware list_lru on each possible node an array of pointers, and
a list_lru_one for every memcg id below memcg_nr_cache_ids. A lazy kernel has an xarray by memcg id instead. Its
entries are list_lru_memcg objects, each with a list_lru_one for each of nr_node_ids. It allocates an entry on first
use: commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed") and
commit bbca91cca9a9 ("mm: list_lru: replace linear array with xarray") (both in v5.18).
"""

from collections import namedtuple

# Version of the model, increased with every change that gives other figures for the same memory.
MODEL_VERSION = 3

# sizeof(struct rcu_head): the header of struct list_lru_memcg, and of the pointer array since
# commit 0c7c1bed7e13 ("mm: make counting of list_lru_one::nr_items lockless") (in v4.17).
_RCU_HEAD_BYTES = 16
_POINTER_BYTES = 8

# Bytes of a list_lru_one, an object of kmalloc-32, in the formula of commit 5abc1e37afa0's message.
FORMULA_OBJECT_BYTES = 32

# Bounds of memcg_nr_cache_ids: memcg_alloc_cache_id() in mm/memcontrol.c, v4.0 to v5.17.
_MEMCG_CACHES_MIN_SIZE = 4
_MEMCG_CACHES_MAX_SIZE = 65535


class Sizes(namedtuple("Sizes", "kmalloc page_bytes list_lru_node list_lru_one xa_node xa_chunk_shift nodes")):
    """The sizes of one kernel that its list_lrus' cost depends on.

    kmalloc: pairs (largest request, allocated bytes) ascending; page_bytes: PAGE_SIZE; list_lru_node, list_lru_one:
    sizeof() the struct; xa_node: allocated bytes of the struct; xa_chunk_shift: XA_CHUNK_SHIFT, 6, or 4 with
    CONFIG_BASE_SMALL; nodes: nr_node_ids.
    """

    __slots__ = ()

    def kmalloc_bytes(self, request_bytes):
        """Return the bytes that kmalloc() allocates: an object of the smallest cache that fits, or 2**n pages."""
        for max_request_bytes, object_bytes in self.kmalloc:
            if request_bytes <= max_request_bytes:
                return object_bytes
        pages = -(-request_bytes // self.page_bytes)
        return self.page_bytes << (pages - 1).bit_length()

    def node_array_bytes(self):
        """Return the bytes of ``struct list_lru_node node[nr_node_ids]``."""
        return self.kmalloc_bytes(self.nodes * self.list_lru_node)

    def pointer_array_bytes(self, cache_ids):
        """Return the bytes of one node's eager ``struct list_lru_memcg`` with its array of pointers."""
        return self.kmalloc_bytes(_RCU_HEAD_BYTES + _POINTER_BYTES * cache_ids)

    def list_lru_one_bytes(self):
        """Return the bytes of one separately allocated ``struct list_lru_one``."""
        return self.kmalloc_bytes(self.list_lru_one)

    def list_lru_memcg_bytes(self):
        """Return the bytes of the lazy ``struct list_lru_memcg`` with a ``struct list_lru_one`` for each node."""
        return self.kmalloc_bytes(_RCU_HEAD_BYTES + self.list_lru_one * self.nodes)


# Slab caches of Debian's and most other kernels for x86_64 with 4 KiB pages.
_X86_64_KMALLOC = tuple((n, n) for n in (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192))


def x86_64(nodes):
    """Return the Sizes of an x86_64 v5.x kernel such as Debian's.

    :param nodes: nr_node_ids.
    """
    return Sizes(_X86_64_KMALLOC, 4096, list_lru_node=64, list_lru_one=24, xa_node=584, xa_chunk_shift=6, nodes=nodes)


def xa_node_count(indices, chunk_shift):
    """Return the number of ``struct xa_node`` in an xarray with entries at these indices (lib/xarray.c).

    :param indices: iterable of distinct int >= 0.
    :param chunk_shift: XA_CHUNK_SHIFT: a node has 2**chunk_shift slots.
    """
    level = set(indices)
    count = 0
    max_index = max(level, default=0)
    while max_index:
        level = {index >> chunk_shift for index in level}
        max_index >>= chunk_shift
        count += len(level)
    return count


def next_cache_ids(cache_ids):
    """Return the next memcg_nr_cache_ids: the kernel grows it when more memcgs are online than it has ids for."""
    return min(max(2 * (cache_ids + 1), _MEMCG_CACHES_MIN_SIZE), _MEMCG_CACHES_MAX_SIZE)


def cache_ids_for(memcgs):
    """Return memcg_nr_cache_ids of a kernel that had this number of memcgs online at once.

    :param memcgs: number of memcgs without the root.
    """
    cache_ids = 0
    while cache_ids < min(memcgs, _MEMCG_CACHES_MAX_SIZE):
        cache_ids = next_cache_ids(cache_ids)
    return cache_ids


def formula_bytes(superblocks, nodes, cache_ids):
    """Return the figure of commit 5abc1e37afa0's message: two lists a superblock, one list_lru_one a node and id."""
    return 2 * superblocks * nodes * cache_ids * FORMULA_OBJECT_BYTES


def eager_bytes(sizes, nodes, cache_ids):
    """Return the bytes of one memcg-aware list_lru on an eager kernel: node array, pointer arrays, objects.

    :param nodes: number of possible nodes, on which arrays and objects exist.
    """
    objects = nodes * cache_ids * sizes.list_lru_one_bytes()
    return sizes.node_array_bytes(), nodes * sizes.pointer_array_bytes(cache_ids), objects


def lazy_bytes(sizes, memcg_ids):
    """Return the bytes of one list_lru on a lazy kernel: node array, list_lru_memcg objects, xarray nodes.

    :param memcg_ids: collection of the memcg->id.id of each memcg with an entry.
    """
    objects = len(memcg_ids) * sizes.list_lru_memcg_bytes()
    xa_nodes = xa_node_count(memcg_ids, sizes.xa_chunk_shift)
    return sizes.node_array_bytes(), objects, xa_nodes * sizes.xa_node
