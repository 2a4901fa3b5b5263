"""The rows of the table memcg_memory: each part of what memory cgroups cost, as it is counted.

A part that cannot be counted is left out with a note, and never ends the audit.
"""

from collections import namedtuple

from .access.memory import UNREADABLE, is_running
from .model import upgrade
from .walk import layouts, memcg_caches, memcg_slabs, memcg_structs, memcgs, percpu, shrinker_infos
from .walk.held import Held

# Bounds the attempts to count a part of a running kernel.
_MAX_LIVE_ATTEMPTS = 3


class _Count(namedtuple("_Count", "held basis facts percpu_held addresses")):
    """A counted part: its Held or None, the basis, what upgrade.Machine has of it by field, and what others need of it.

    percpu_held: the Held that belongs to memcg_percpu, or None. addresses: of objects of memcgs in slabs.
    """

    __slots__ = ()


def _exact(held, addresses=(), **facts):
    return _Count(held, "exact", facts, None, addresses)


def parts(prog, findings, memcg_list, dying_pages, machine, target_kernel):
    """Return the rows of each part, and notes on the parts that could not be counted.

    :param findings: list_lrus.Findings.
    :param memcg_list: list of Memcg, empty on a kernel without lists for memcgs.
    :param dying_pages: dying_memcg_pages.DyingMemcgPages, or None if they were not counted.
    :param machine: upgrade.Machine; what is counted here replaces its fields.
    :param target_kernel: target_kernels.TargetKernel, or None if this kernel is not older.
    """
    counts, notes = {}, []
    counters = _counters(prog, findings, memcg_list, dying_pages, machine, counts)
    for part in list(counters):
        for attempt in range(_MAX_LIVE_ATTEMPTS if is_running(prog) else 1):
            try:
                if attempt:
                    counters = _counters(prog, findings, memcgs.walk(prog), dying_pages, machine, counts)
                counts[part] = counters[part]()
                break
            except UNREADABLE as e:
                error = e
        else:
            notes.append("%s is not counted: %s" % (part, error))
    if "memcg_percpu" in counts:
        parts_held = [counts["memcg_percpu"].held, *(count.percpu_held for count in counts.values())]
        held = Held(*map(sum, zip(*filter(None, parts_held))))
        facts = dict(counts["memcg_percpu"].facts, memcg_percpu_bytes=held.total_bytes)
        counts["memcg_percpu"] = _exact(held, **facts)
    predictions = {}
    if target_kernel is not None:
        facts = {name: value for count in counts.values() for name, value in count.facts.items()}
        predictions = upgrade.predict(machine._replace(**facts), target_kernel)
    rows = [_row(part, count, predictions.get(part)) for part, count in counts.items() if count.held is not None]
    return rows, notes


def _counters(prog, findings, memcg_list, dying_pages, machine, counts):
    """Return a function for each part that returns its _Count, in the order of the rows: dict by part.

    :param counts: dict of part to _Count, of the parts before.
    """
    pointers = memcgs.Pointers(prog, shrinker_infos.POINTERS, memcg_structs.POINTERS, percpu.pointer_paths(prog))
    counters = {
        "list_lru": lambda: _exact(_list_lrus(findings, memcg_list)),
        "shrinker_info": lambda: _shrinker_infos(prog, memcg_list, pointers, machine.shrinker_ids),
        "memcg_structs": lambda: _exact(*memcg_structs.count(prog, memcg_list, pointers)),
        "memcg_slab_left": lambda: _slab_left(prog, counts),
        "memcg_percpu": lambda: _percpu(prog, memcg_list, pointers),
        "percpu_left": lambda: _percpu_left(prog),
        "memcg_kmem_caches": lambda: _memcg_kmem_caches(prog, memcg_list),
        "memcg_caches_arrays": lambda: _exact(memcg_caches.count_arrays(prog, memcg_list)),
    }
    if dying_pages:
        counters["dying_page_cache"] = lambda: _exact(Held(0, dying_pages.page_cache_bytes(), 0))
    return counters


def _row(part, count, prediction):
    return {
        "part": part,
        "held_bytes": count.held.total_bytes,
        "online_bytes": count.held.online_bytes,
        "dying_bytes": count.held.dying_bytes,
        "left_bytes": count.held.left_bytes,
        "upgraded_bytes": prediction and prediction.upgraded_bytes,
        "basis": count.basis + ("; upgraded: " + prediction.rule if prediction else ""),
    }


def _shrinker_infos(prog, memcg_list, pointers, superblock_ids):
    """Return the _Count of the arrays for shrinkers.

    They are for the most ids ever; after a reboot only the superblocks that are there need one.
    """
    count = shrinker_infos.count(prog, memcg_list, pointers)
    if count is None:
        return _Count(Held(0, 0, 0), "this kernel has none", {}, None, ())
    return _exact(count.held, count.addresses, shrinker_ids=min(count.ids, superblock_ids))


def _slab_left(prog, counts):
    """Return the _Count of the free slots of slabs with structs and arrays of memcgs.

    :raises LookupError: these could not be counted.
    """
    addresses = []
    for part in ("memcg_structs", "shrinker_info"):
        if part not in counts:
            raise LookupError("%s is not" % part)
        addresses += counts[part].addresses
    return _exact(Held(0, 0, memcg_slabs.free_bytes(prog, addresses)))


def _percpu(prog, memcg_list, pointers):
    held = percpu.memcgs(prog, memcg_list, pointers)
    return _exact(held, **percpu.cgroup_form(prog, memcg_list, pointers)._asdict())


def _percpu_left(prog):
    chunks = percpu.left(prog)
    return _exact(Held(0, 0, chunks.populated_bytes - chunks.used_bytes), percpu_chunks=chunks)


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
    count = memcg_caches.count(prog, memcg_list)
    if count is None:
        return _exact(None)
    return _Count(count.held, count.basis, {"shared_caches_bytes": count.shared_bytes}, count.percpu_held, ())
