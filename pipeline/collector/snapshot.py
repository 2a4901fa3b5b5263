"""One audit of one kernel: its rows for the tables targets, superblocks, list_lrus and memcgs.

What each column means stands in ``schemas/``; this fills them in.
"""

import re

from drgn import FaultError, Object, alignof, sizeof
from drgn.helpers.linux.nodemask import for_each_node_mask

from . import __version__, cost, layouts, list_lrus, memcgs, slab, superblocks
from .memory import has_member, text

_MICROSECONDS = 1000000
# struct timekeeper.xtime_sec is plausible between these: 2000 and 2200.
_PLAUSIBLE_SECONDS = (946684800, 7258118400)

_MOST_NOTES = 5

LAZY_TARGET = "v5.18-6.12"


class Table:
    """Rows of one table under their column names."""

    def __init__(self, name):
        self.name = name
        self.columns = []
        self.rows = []

    def add(self, **row):
        self.columns = self.columns or list(row)
        self.rows.append([row[column] for column in self.columns])


class Snapshot:
    """What one audit found.

    :ivar tables: the four Tables. :ivar unsupported: why this kernel has no memcg list_lrus, or None.
    """

    def __init__(self):
        self.target = Table("targets")
        self.superblocks = Table("superblocks")
        self.list_lrus = Table("list_lrus")
        self.memcgs = Table("memcgs")
        self.tables = (self.target, self.superblocks, self.list_lrus, self.memcgs)
        self.unsupported = None


def take(kernel):
    """Audit an opened kernel.

    :param kernel: kernel.Kernel. :return: Snapshot.
    :raises CollectError: a structure is broken. :raises drgn.FaultError: memory is missing.
    """
    prog = kernel.prog
    snapshot = Snapshot()
    layout = layouts.detect(prog)
    sbs = superblocks.walk(prog)
    cgroups = memcgs.walk(prog) if layout != "none" and _has_memcg(prog) else []
    if layout == "none" or not cgroups:
        snapshot.unsupported = "this kernel has no memcg-aware list_lru: it is older than v4.0 or built without them"
        found = list_lrus.Found("none")
    else:
        found = list_lrus.walk(prog, layout, sbs, cgroups)
    model = _Model(prog, found, cgroups)
    for lru in found.list_lrus:
        snapshot.list_lrus.add(**_list_lru_row(lru, found, model))
    for sb in sbs:
        snapshot.superblocks.add(**_superblock_row(sb))
    for row in _memcg_rows(found, cgroups):
        snapshot.memcgs.add(**row)
    snapshot.target.add(**_target_row(kernel, found, sbs, cgroups))
    return snapshot


def _has_memcg(prog):
    try:
        return bool(prog["root_mem_cgroup"])
    except LookupError:
        return False


class _Model:
    """The cost model with this kernel's sizes and memcgs."""

    def __init__(self, prog, found, cgroups):
        self._eager = found.layout in layouts.EAGER
        if not self._eager:
            return
        self._by_cache_id = {memcg.cache_id: memcg for memcg in cgroups if memcg.cache_id is not None}
        self._sizes = cost.Sizes(
            kmalloc=slab.kmalloc_sizes(prog),
            page=prog["PAGE_SIZE"].value_(),
            list_lru_node=sizeof(prog.type("struct list_lru_node")),
            list_lru_one=sizeof(prog.type("struct list_lru_one")),
            xa_node=prog["radix_tree_node_cachep"].size.value_(),
            nodes=prog["nr_node_ids"].value_(),
        )
        # Without kernel memory accounting (cgroup.memory=nokmem) no memcg has an id, and none gets an entry.
        online = [memcg for memcg in cgroups if memcg.online and memcg.parent] if found.cache_ids else []
        _, *self._all_online = cost.lazy_bytes(self._sizes, _ids(online))

    def lazy(self, lru):
        """Return the bytes of a list_lru's objects and xarray nodes on a lazy kernel: at least, and at most."""
        if not self._eager:
            now = (lru.list_lru_one_bytes, lru.xa_node_bytes)
            return now, now
        if not lru.memcg_aware:
            return (0, 0), (0, 0)
        with_items = _with_ancestors(self._by_cache_id[cache_id] for cache_id in lru.items_by_id)
        _, *low = cost.lazy_bytes(self._sizes, _ids(with_items))
        return low, self._all_online


def _ids(cgroups):
    # memcg->id.id is what the lazy kernel indexes by; before v4.7 css.id, then the same number, stands in for it.
    return {memcg.css_id if memcg.memcg_id is None else memcg.memcg_id for memcg in cgroups}


def _with_ancestors(cgroups):
    """Return memcgs and their ancestors without the root: memcg_list_lru_alloc() makes entries for all of them."""
    closed = set()
    for memcg in cgroups:
        while memcg.parent and memcg not in closed:
            closed.add(memcg)
            memcg = memcg.parent
    return closed


def _list_lru_row(lru, found, model):
    low, expected = model.lazy(lru)
    lazy_bytes = lru.node_array_bytes + sum(expected)
    lazy_layout = found.layout in layouts.LAZY
    empty = None
    if lazy_layout:
        empty = (lru.list_lru_one_objects - len(lru.items_by_id)) * (found.object_bytes or 0)
    return {
        "address": lru.address,
        "owner": lru.owner,
        "superblock": lru.superblock,
        "name": lru.name,
        "memcg_aware": lru.memcg_aware,
        "nodes": lru.nodes,
        "cache_ids": found.cache_ids,
        "list_lru_one_objects": lru.list_lru_one_objects,
        "list_lru_one_size": found.object_bytes,
        "list_lru_one_bytes": lru.list_lru_one_bytes,
        "pointer_array_bytes": lru.pointer_array_bytes,
        "node_array_bytes": lru.node_array_bytes,
        "xa_node_bytes": lru.xa_node_bytes,
        "items": lru.root_items + lru.memcg_items,
        "root_items": lru.root_items,
        "memcg_items": lru.memcg_items,
        "memcgs_with_items": len(lru.items_by_id),
        "memcgs_charged": None,
        "lazy_low_bytes": lru.node_array_bytes + sum(low),
        "lazy_charged_bytes": None,
        "lazy_bytes": lazy_bytes,
        "lazy_high_bytes": lazy_bytes,
        "lazy_object_bytes": expected[0],
        "lazy_xa_node_bytes": expected[1],
        "lazy_empty_bytes": empty,
        "eager_bytes": None if lazy_layout else lru.total_bytes,
    }


def _superblock_row(sb):
    fstype, _ = text(sb.fstype)
    s_id, s_id_raw = text(sb.s_id)
    mountpoint, mountpoint_raw = (None, None) if sb.mountpoint is None else text(sb.mountpoint)
    return {
        "address": sb.address,
        "fstype": fstype,
        "s_id": s_id,
        "s_id_raw": s_id_raw,
        "s_dev": sb.s_dev,
        "s_flags": sb.s_flags,
        "mounts": sb.mounts,
        "mountpoint": mountpoint,
        "mountpoint_raw": mountpoint_raw,
        "kernel_internal": sb.kernel_internal,
        "owner": None,
    }


def _memcg_rows(found, cgroups):
    items = {}
    lists = {}
    for lru in found.list_lrus:
        for index, count in lru.items_by_id.items():
            items[index] = items.get(index, 0) + count
            lists[index] = lists.get(index, 0) + 1
    for memcg in cgroups:
        path, path_raw = text(memcg.path)
        yield {
            "css_id": memcg.css_id,
            "cache_id": memcg.cache_id,
            "memcg_id": memcg.memcg_id,
            "path": path,
            "path_raw": path_raw,
            "parent": memcg.parent and memcg.parent.css_id,
            "state": "online" if memcg.online else "dying",
            "items": items.get(memcg.cache_id, 0),
            "lists_with_items": lists.get(memcg.cache_id, 0),
            "lists_charged": None,
        }


def _target_row(kernel, found, sbs, cgroups):
    prog = kernel.prog
    uts = prog["init_uts_ns"].name
    captured_s, uptime_s = _clock(prog)
    page_bytes = prog["PAGE_SIZE"].value_()
    online = [memcg for memcg in cgroups if memcg.online and memcg.parent]
    active_objects, cache_bytes = slab.cache_usage(found.object_cache) if found.object_cache else (None, None)
    in_cache = sum(lru.list_lru_one_objects for lru in found.list_lrus) if found.object_cache else None
    reads, read_bytes = _reads()
    return {
        "collector_version": __version__,
        "model_version": cost.MODEL_VERSION,
        "reads": reads,
        "read_bytes": read_bytes,
        "peak_rss_bytes": _peak_rss_bytes(),
        "host": text(uts.nodename.string_())[0],
        "kernel_release": text(uts.release.string_())[0],
        "kernel_version": text(uts.version.string_())[0],
        "arch": text(uts.machine.string_())[0],
        "page_bytes": page_bytes,
        "memory_bytes": _totalram_pages(prog) * page_bytes,
        "captured_at": captured_s and captured_s * _MICROSECONDS,
        "booted_at": captured_s and (captured_s - uptime_s) * _MICROSECONDS,
        "uptime_s": uptime_s,
        "nr_node_ids": prog["nr_node_ids"].value_(),
        "possible_nodes": _nodes(prog, "N_POSSIBLE"),
        "online_nodes": _nodes(prog, "N_ONLINE"),
        "layout": found.layout,
        "types_source": kernel.types_source,
        "memcg_nr_cache_ids": found.cache_ids,
        "online_memcgs": len(online) if cgroups else None,
        "dying_memcgs": sum(1 for memcg in cgroups if not memcg.online) if cgroups else None,
        "max_online_id": max((memcg.cache_id for memcg in online if memcg.cache_id is not None), default=None),
        "superblocks": len(sbs),
        "list_lrus": len(found.list_lrus),
        "slab_cache": found.object_cache and text(found.object_cache.name.string_())[0],
        "slab_cache_active_objects": active_objects,
        "slab_cache_bytes": cache_bytes,
        "list_lru_one_in_cache": in_cache,
        "lazy_target": LAZY_TARGET if found.layout in layouts.EAGER else None,
        "lazy_basis": "online" if found.layout in layouts.EAGER else None,
        "consistency": "raced" if found.raced else "exact",
        "notes": "; ".join(filter(None, [kernel.note, *found.raced[:_MOST_NOTES]])) or None,
    }


def _nodes(prog, state):
    return list(for_each_node_mask(prog["node_states"][prog.constant(state)]))


def _totalram_pages(prog):
    try:
        return prog["_totalram_pages"].counter.value_()
    except LookupError:  # before v5.0 (ca79b0c211af)
        return prog["totalram_pages"].value_()


def _clock(prog):
    """Return the kernel's own time in seconds since the epoch and since boot, or None and None."""
    try:
        timekeeper = _timekeeper(prog)
        now = timekeeper.xtime_sec.value_()
        offs_boot = timekeeper.offs_boot
        if has_member(offs_boot.type_, "tv64"):  # before v4.10 (2456e8553544)
            offs_boot = offs_boot.tv64
        booted = -(timekeeper.wall_to_monotonic.tv_sec.value_()) - offs_boot.value_() // 10**9
    except (LookupError, FaultError, AttributeError):
        return None, None
    low, high = _PLAUSIBLE_SECONDS
    return (now, max(0, now - booted)) if low < now < high else (None, None)


def _timekeeper(prog):
    try:
        return prog["timekeeper_data"][prog.constant("TIMEKEEPER_CORE")].timekeeper  # v6.17 (22c62b9a84b8)
    except LookupError:
        pass
    try:
        return prog["tk_core"].timekeeper
    except LookupError:
        # Before v6.13 tk_core's struct has no name that BTF could tell: a sequence count, then the timekeeper.
        at = prog.symbol("tk_core").address
        try:
            seqcount = prog.type("seqcount_raw_spinlock_t")
        except LookupError:  # before v5.9 (025e82bcbc34)
            seqcount = prog.type("seqcount_t")
        align = alignof(prog.type("struct timekeeper"))
        return Object(prog, "struct timekeeper", address=at + -(-sizeof(seqcount) // align) * align)


def _reads():
    """Return the read system calls of this process and their bytes, as /proc/self/io has them, or None and None."""
    try:
        with open("/proc/self/io") as f:
            counters = dict(line.split(": ") for line in f.read().splitlines())
    except OSError:
        return None, None
    return int(counters["syscr"]), int(counters["rchar"])


def _peak_rss_bytes():
    """Return the most memory that this program had, or None; getrusage() would include its parent's before exec()."""
    try:
        with open("/proc/self/status") as f:
            return int(re.search(r"^VmHWM:\s+(\d+) kB", f.read(), re.MULTILINE).group(1)) * 1024
    except (OSError, AttributeError):
        return None
