"""One audit of one kernel: its rows for the tables targets, superblocks, list_lrus and memcgs.

What each column means stands in ``schemas/``; this fills them in.
"""

from drgn import FaultError, Object, alignof, sizeof

from . import __version__, budget
from .access.memory import has_member, is_running, text
from .model import cost, estimate
from .walk import charges, containers, layouts, list_lrus, memcgs, nodes, slab, superblocks

_MICROSECONDS = 1000000
# struct timekeeper.xtime_sec is plausible between these: 2000 and 2200.
_PLAUSIBLE_SECONDS = (946684800, 7258118400)

_MOST_NOTES = 5


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


def take(kernel, charged=True, target=estimate.DEFAULT_TARGET, verify=False):
    """Audit an opened kernel.

    :param kernel: kernel.Kernel. :param charged: whether to look for charged objects, in all of the memmap.
    :param target: the lazy kernel to estimate, a key of estimate.TARGETS. :param verify: whether to look at every
        pointer array of an eager kernel rather than at a sample. :return: Snapshot.
    :raises CollectError: a structure is broken. :raises drgn.FaultError: memory is missing.
    """
    prog = kernel.prog
    snapshot = Snapshot()
    layout = layouts.detect(prog)
    sbs = superblocks.walk(prog)
    cgroups, owned, of_charges = [], None, None
    if layout == "none":
        snapshot.unsupported = (
            "this kernel's list_lrus have no lists for memcgs: it is older than v4.0, or built without CONFIG_MEMCG or "
            "CONFIG_MEMCG_KMEM"
        )
        found = list_lrus.Found(layout)
    else:
        cgroups = memcgs.walk(prog)
        if charged:
            owned, of_charges = _charges(prog, layout, sbs, cgroups)
        found = list_lrus.walk(prog, layout, sbs, cgroups, owned and owned.by_list_lru, verify)
        sbs = [sb for sb in sbs if sb.address not in found.gone]
    estimated = _estimate(prog, found, sbs, cgroups, owned, target) if cgroups else None
    for lru in found.list_lrus:
        snapshot.list_lrus.add(**_list_lru_row(lru, found, estimated))
    owners = containers.of_superblocks(prog, sbs, cgroups) if cgroups else {}
    for sb in sbs:
        snapshot.superblocks.add(**_superblock_row(sb, owners.get(sb.address)))
    for row in _memcg_rows(found, cgroups, owned, estimated):
        snapshot.memcgs.add(**row)
    row = _target_row(kernel, found, sbs, cgroups)
    if found.layout in layouts.EAGER:
        row["lazy_target"], _ = estimate.TARGETS[target]
        row["lazy_basis"] = "charged" if owned else "online"
    row["charged_scan_bytes"] = owned and owned.read_bytes
    row["notes"] = (
        "; ".join(filter(None, [kernel.note, of_charges, _unknown(found), *found.raced[:_MOST_NOTES]])) or None
    )
    snapshot.target.add(**row)
    return snapshot


def _charges(prog, layout, sbs, cgroups):
    """Return the Charges, or None where there are none, and the note on them, or None."""
    without_id = sum(memcg.online and memcg.cache_id is None for memcg in cgroups if memcg.parent)
    if layout in layouts.EAGER and without_id and not estimate.nokmem(prog):
        # Up to v4.5 only those with a limit for kernel memory (b313aeee2509 is v4.6).
        return None, "%d memcgs are charged for nothing here and would be on a lazy kernel" % without_id
    try:
        owned = charges.scan(prog, sbs, cgroups)
    except charges.NotScanned as e:
        return None, str(e)
    # Slabs are freed and used again meanwhile.
    return owned, "charged objects were counted while the kernel ran: a lower bound" if is_running(prog) else None


def _estimate(prog, found, sbs, cgroups, owned, target):
    if found.layout in layouts.EAGER:
        return estimate.OfEager(prog, sbs, cgroups, owned, target)
    possible_nodes = len(nodes.in_state(prog, "N_POSSIBLE"))
    return estimate.OfLazy(prog, cgroups, owned, found.cache_ids, possible_nodes, found.object_bytes)


def _list_lru_row(lru, found, estimated):
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
        **estimated.columns(lru),
    }


def _superblock_row(sb, owner):
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
        "owner": owner,
    }


def _memcg_rows(found, cgroups, owned, estimated):
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
            "lists_charged": owned and estimated.lists_charged[memcg],
            "lazy_lists": estimated.lazy_lists[memcg] if memcg.online and memcg.parent else None,
            "serial_nr": memcg.serial_nr,
            "dir_rev": memcg.dir_rev,
        }


def _target_row(kernel, found, sbs, cgroups):
    prog = kernel.prog
    uts = prog["init_uts_ns"].name
    captured_s, uptime_s = _clock(prog)
    page_bytes = prog["PAGE_SIZE"].value_()
    online = [memcg for memcg in cgroups if memcg.online and memcg.parent]
    active_objects, cache_bytes = slab.cache_usage(found.object_cache) if found.object_cache else (None, None)
    in_cache = sum(lru.list_lru_one_objects for lru in found.list_lrus) if found.object_cache else None
    reads, read_bytes = budget.reads()
    return {
        "collector_version": __version__,
        "model_version": cost.MODEL_VERSION,
        "reads": reads,
        "read_bytes": read_bytes,
        "peak_rss_bytes": budget.peak_rss_bytes(),
        "host": text(uts.nodename.string_())[0],
        "kernel_release": text(uts.release.string_())[0],
        "kernel_version": text(uts.version.string_())[0],
        "arch": text(uts.machine.string_())[0],
        "page_bytes": page_bytes,
        "memory_bytes": _totalram_pages(prog) * page_bytes,
        "captured_at": captured_s and captured_s * _MICROSECONDS,
        "booted_at": captured_s and (captured_s - uptime_s) * _MICROSECONDS,
        "uptime_s": uptime_s,
        "nr_node_ids": nodes.nr_node_ids(prog),
        "possible_nodes": nodes.in_state(prog, "N_POSSIBLE"),
        "online_nodes": nodes.in_state(prog, "N_ONLINE"),
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
        "lazy_target": None,
        "lazy_basis": None,
        "consistency": "raced" if found.raced else "exact",
    }


def _unknown(found):
    """Return the note on list_lrus of which nobody knows whose they are, or None."""
    unknown = sum(lru.owner == "unknown" for lru in found.list_lrus)
    return "list_lrus of an unknown owner: %d" % unknown if unknown else None


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
