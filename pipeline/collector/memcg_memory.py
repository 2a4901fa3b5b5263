"""The rows of the table memcg_memory: each part of what memory cgroups cost, as it is counted.

A part that cannot be counted is left out with a note, and never ends the audit.
"""

from drgn import FaultError

from .status import CollectError
from .walk import layouts, memcg_caches, memcg_structs, percpu, shrinker_infos
from .walk.held import Held


def parts(prog, findings, memcg_list):
    """Return the rows of each part, and notes on the parts that could not be counted.

    :param findings: list_lrus.Findings.
    :param memcg_list: list of Memcg, empty on a kernel without lists for memcgs.
    """
    counters = {
        "list_lru": lambda: (_list_lrus(findings, memcg_list), "exact"),
        "shrinker_info": lambda: (_shrinker_infos(prog, memcg_list), "exact"),
        "memcg_structs": lambda: (memcg_structs.count(prog, memcg_list), "exact"),
        "memcg_percpu": lambda: (percpu.memcgs(prog, memcg_list), "exact"),
        "percpu_left": lambda: (_percpu_left(prog), "exact"),
        "memcg_kmem_caches": lambda: _memcg_kmem_caches(prog, memcg_list),
        "memcg_caches_arrays": lambda: (memcg_caches.count_arrays(prog, memcg_list), "exact"),
    }
    rows, notes = [], []
    for part, count in counters.items():
        try:
            held, basis = count()
        except (FaultError, LookupError, AttributeError, ValueError, CollectError) as e:
            notes.append("%s is not counted: %s" % (part, e))
            continue
        if held is not None:
            rows.append(_row(part, held, basis))
    return rows, notes


def _row(part, held, basis):
    return {
        "part": part,
        "held_bytes": held.total_bytes,
        "online_bytes": held.online_bytes,
        "dying_bytes": held.dying_bytes,
        "left_bytes": held.left_bytes,
        "upgraded_bytes": None,
        "basis": basis,
    }


def _shrinker_infos(prog, memcg_list):
    counted = shrinker_infos.count(prog, memcg_list)
    return counted and counted.held


def _percpu_left(prog):
    chunks = percpu.left(prog)
    return Held(0, 0, chunks.populated_bytes - chunks.used_bytes)


def _list_lrus(findings, memcg_list):
    """Return the Held of all list_lrus.

    An eager kernel has objects and pointers for ids that no online memcg has: they are left. A lazy kernel frees an
    entry with its memcg. Node arrays have the lists of the root memcg, which is online.
    """
    online_ids = {memcg.cache_id for memcg in memcg_list if memcg.cache_id is not None}
    dying_ids = {memcg.memcg_id for memcg in memcg_list if not memcg.online} - online_ids
    dying_bytes = left_bytes = 0
    for lru in findings.list_lrus:
        objects = lru.list_lru_one_objects
        if findings.layout in layouts.EAGER:
            online, dying = lru.nodes * len(online_ids), 0
        else:
            online, dying = (sum(memcg_id in ids for memcg_id in lru.ids) for ids in (online_ids, dying_ids))
        entry_bytes = lru.list_lru_one_bytes + lru.xa_node_bytes
        dying_bytes += _share(entry_bytes, dying, objects)
        left_bytes += _share(entry_bytes, objects - online - dying, objects)
        if lru.cache_ids:
            left_bytes += _share(lru.pointer_array_bytes, lru.cache_ids - len(online_ids), lru.cache_ids)
    total_bytes = sum(lru.total_bytes for lru in findings.list_lrus)
    return Held(total_bytes - dying_bytes - left_bytes, dying_bytes, left_bytes)


def _share(size, part, whole):
    return size * part // whole if whole else 0


def _memcg_kmem_caches(prog, memcg_list):
    """Return the Held of the slab caches of memcgs, and its basis."""
    count = memcg_caches.count(prog, memcg_list)
    if count is None:
        return None, None
    basis = "exact"
    if count.sampled_one_in > 1:
        basis = "modelled: one in %d of the free lists of CPUs was read" % count.sampled_one_in
    return count.held, "%s; %d bytes are per-CPU memory" % (basis, count.percpu_bytes)
