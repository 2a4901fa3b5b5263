"""Audit of one kernel: the rows of the tables that hosts have.

``schemas/`` documents the columns.
"""

import zlib
from math import ceil

from drgn import FaultError, Object, alignof, sizeof

from . import __version__, budget, identity, memcg_memory
from .access.memory import UNREADABLE, c_string, escaped_text, has_member, is_running, text
from .model import cost, estimate, target_kernels, upgrade
from .walk import (
    charges,
    containers,
    dying_memcg_pages,
    layouts,
    list_lrus,
    memcgs,
    memmap,
    slab,
    superblocks,
    totals,
    transient_objects,
    xarrays,
)
from .walk.nodes import nodes_in_state, nr_node_ids

_MICROSECONDS = 1000000
# Range of a plausible struct timekeeper.xtime_sec: the years 2000 to 2200.
_PLAUSIBLE_SECONDS = (946684800, 7258118400)
_MAX_UPTIME_S = 946684800  # 30 years

# Objects of the slab cache of list_lru_ones that other users have without a note. Kernels of the lab have up to 10,500;
# a doubling that goes unnoticed half way leaves 50 % of what is counted unexplained.
_MAX_UNEXPLAINED_OBJECTS = 20000
_MAX_UNEXPLAINED_PART = 0.2

# Memcg-aware shrinkers that are not of superblocks: deferred_split_shrinker and mm-shadow. Before v4.19 none has an id.
_OTHER_SHRINKERS = 2

# Bounds the column notes: a busy host can have a note for each list_lru.
_MAX_RACE_NOTES = 5
_LONG_BYTES = 8
_DYING_NOTE = "what keeps dying memcgs is not known: %s"


class Table:
    """The column names and the rows of one table."""

    def __init__(self, name):
        self.name = name
        self.columns = []
        self.rows = []

    def add(self, **row):
        self.columns = self.columns or list(row)
        self.rows.append([row[column] for column in self.columns])


class Snapshot:
    """Result of one audit.

    :ivar tables: the Tables.
    :ivar unsupported_reason: why this kernel has no list_lrus for memcgs, or None.
    """

    def __init__(self):
        self.target = Table("targets")
        self.superblocks = Table("superblocks")
        self.list_lrus = Table("list_lrus")
        self.memcgs = Table("memcgs")
        self.memcg_memory = Table("memcg_memory")
        self.dying_memcg_pages = Table("dying_memcg_pages")
        self.tables = (
            self.target,
            self.superblocks,
            self.list_lrus,
            self.memcgs,
            self.memcg_memory,
            self.dying_memcg_pages,
        )
        self.unsupported_reason = None


def take(kernel, scan_charges=True, target=target_kernels.DEFAULT, verify=False, max_scan_bytes=None):
    """Audit an opened kernel.

    :param kernel: kernel.Kernel.
    :param scan_charges: scan the memmap for charged objects.
    :param max_scan_bytes: limit of that scan, whose figures only an eager kernel needs, or None for a whole scan.
    :param target: the kernel to upgrade to, a key of target_kernels.KERNELS or .LAYOUTS.
    :param verify: check every pointer array of an eager kernel instead of a sample.
    :return: Snapshot.
    :raises CollectError: a structure is broken.
    :raises drgn.FaultError: memory is missing.
    """
    prog = kernel.prog
    target_kernel = target_kernels.named(target)
    snapshot = Snapshot()
    layout = layouts.detect(prog)
    sbs = superblocks.walk(prog)
    memcg_list, object_charges, dying_pages, charges_notes = [], None, None, []
    if layout == "none":
        snapshot.unsupported_reason = (
            "this kernel's list_lrus have no lists for memcgs: it is older than v4.0, or built without CONFIG_MEMCG or "
            "CONFIG_MEMCG_KMEM"
        )
        findings = list_lrus.Findings(layout)
    else:
        memcg_list = memcgs.walk(prog)
        if scan_charges and (max_scan_bytes is None or layout in layouts.EAGER):
            object_charges, dying_pages, charges_notes = _scan_charges(prog, layout, sbs, memcg_list, max_scan_bytes)
        likely_memcgs = object_charges and object_charges.by_list_lru
        findings = list_lrus.walk(prog, layout, sbs, memcg_list, likely_memcgs, verify)
        sbs = [sb for sb in sbs if sb.address not in findings.departed_superblocks]
    estimator = None
    if memcg_list:
        estimator = _make_estimator(prog, findings, sbs, memcg_list, object_charges, target_kernel.lazy_layout)
    lru_rows = [_list_lru_row(lru, findings, estimator) for lru in findings.list_lrus]
    for row in lru_rows:
        snapshot.list_lrus.add(**row)
    owners = containers.find_owners(prog, sbs, memcg_list) if memcg_list else {}
    for sb in sbs:
        snapshot.superblocks.add(**_superblock_row(sb, owners.get(sb.address)))
    for row in _memcg_rows(findings, memcg_list, object_charges, estimator):
        snapshot.memcgs.add(**row)
    dying_rows, dying_note = _dying_memcg_page_rows(prog, dying_pages, sbs)
    for row in dying_rows:
        snapshot.dying_memcg_pages.add(**row)
    row = _target_row(kernel, findings, sbs, memcg_list)
    memory_notes = []
    if memcg_list:
        newer_kernel = target_kernel if target_kernel.is_newer_than(row["kernel_release"]) else None
        row["target_kernel"] = newer_kernel and newer_kernel.name
        machine = _machine(prog, memcg_list, len(sbs), lru_rows, target_kernel)
        parts, memory_notes = memcg_memory.parts(prog, findings, memcg_list, dying_pages, machine, newer_kernel)
        for part in parts:
            snapshot.memcg_memory.add(**part)
    if findings.layout in layouts.EAGER:
        row["lazy_target"], _ = estimate.TARGETS[target_kernel.lazy_layout]
        row["lazy_basis"] = "charged" if object_charges else "online"
        if object_charges and object_charges.error_pairs is not None:
            row["lazy_basis"] = "sampled"
            row["lazy_error_bytes"] = _error_bytes(object_charges.error_pairs * estimator.max_pair_bytes(), lru_rows)
    row["charged_scan_bytes"] = object_charges and object_charges.read_bytes
    notes = [
        kernel.note,
        *charges_notes,
        _growth_note(findings),
        _slab_note(findings, row),
        *_list_lru_notes(findings),
        *memory_notes,
        dying_note,
        *findings.race_notes[:_MAX_RACE_NOTES],
    ]
    row["notes"] = "; ".join(filter(None, notes)) or None
    snapshot.target.add(**row)
    return snapshot


def _scan_charges(prog, layout, sbs, memcg_list, max_bytes=None):
    """Scan for charged objects and, without a limit, for pages of dying memcgs.

    :return: the Charges and the DyingMemcgPages, each None if they could not be counted, and a list of notes.
    """
    has_dying = not all(memcg.online for memcg in memcg_list)
    # Only the slabs of charged objects show that no page of the memmap is missing.
    uncounted_notes = [_DYING_NOTE % "charged objects are not counted"] if has_dying else []
    uncharged_memcgs = sum(memcg.online and memcg.cache_id is None for memcg in memcg_list if memcg.parent)
    if layout in layouts.EAGER and uncharged_memcgs and not memcgs.is_kmem_disabled(prog):
        # Before commit b313aeee2509 ("mm: memcontrol: enable kmem accounting for all cgroups in the legacy hierarchy")
        # (in v4.6) only memcgs with a limit for kernel memory are charged.
        note = "%d memcgs are not charged for kernel memory here and would be on a lazy kernel" % uncharged_memcgs
        return None, None, [note, *uncounted_notes]
    dying_pages, notes = None, []
    if max_bytes is None:
        try:
            dying_pages = dying_memcg_pages.DyingMemcgPages(prog, memcg_list)
        except UNREADABLE as e:
            notes.append(_DYING_NOTE % e)
    elif has_dying:
        notes.append(_DYING_NOTE % "only the part of memory with slabs is read without --charged")
    try:
        object_charges = charges.scan(prog, sbs, memcg_list, dying_pages, max_bytes)
    except charges.NotScanned as e:
        return None, None, [str(e), *uncounted_notes]
    if is_running(prog):
        # Slabs are freed and reused during the scan.
        notes.append("charged objects were counted while the kernel ran: some can be missing")
    return object_charges, dying_pages, notes


def _make_estimator(prog, findings, sbs, memcg_list, object_charges, target):
    if findings.layout in layouts.EAGER:
        return lazy_estimate(prog, sbs, memcg_list, object_charges, target)
    return _eager_estimate(prog, findings, memcg_list, object_charges)


def lazy_estimate(prog, sbs, memcg_list, object_charges, target):
    """Return the LazyEstimate of a kernel.

    :param sbs: list of SuperBlock.
    :param memcg_list: list of Memcg.
    :param object_charges: charges.Charges, or None if charged objects are not known.
    :param target: the lazy kernel, a key of estimate.TARGETS.
    """
    sizes = _sizes(prog, estimate.TARGETS[target][1] or sizeof(prog.type("struct list_lru_one")))
    has_memcg_without_id = any(memcg.online and memcg.parent and memcg.cache_id is None for memcg in memcg_list)
    is_kmem_disabled = has_memcg_without_id and memcgs.is_kmem_disabled(prog)
    if object_charges is None:
        return estimate.LazyEstimate(sizes, memcg_list, None, is_kmem_disabled)
    transient_lists = transient_objects.list_lrus(prog, sbs)
    kernel_mounts = transient_objects.kernel_mounts(sbs)
    return estimate.LazyEstimate(
        sizes,
        memcg_list,
        object_charges.by_list_lru,
        is_kmem_disabled,
        transient_lists,
        kernel_mounts,
        object_charges.imputed_by_list_lru,
    )


def _eager_estimate(prog, findings, memcg_list, object_charges):
    """Return the EagerEstimate of a kernel.

    struct list_lru_one is that of eager kernels, a list_head and a long: the lock came with
    commit fb56fdf8b9a2 ("mm/list_lru: split the lock to per-cgroup scope") (in v6.13).
    """
    sizes = _sizes(prog, sizeof(prog.type("struct list_head")) + _LONG_BYTES)
    possible_nodes = len(nodes_in_state(prog, "N_POSSIBLE"))
    charged_memcgs = object_charges and object_charges.by_list_lru
    return estimate.EagerEstimate(
        sizes, memcg_list, charged_memcgs, findings.cache_ids, possible_nodes, findings.object_bytes
    )


def _sizes(prog, list_lru_one_bytes):
    """Return the cost.Sizes of a kernel that differs from this one in sizeof(struct list_lru_one) only."""
    return cost.Sizes(
        kmalloc=slab.kmalloc_sizes(prog),
        page_bytes=prog["PAGE_SIZE"].value_(),
        list_lru_node=sizeof(prog.type("struct list_lru_node")),
        list_lru_one=list_lru_one_bytes,
        xa_node=prog["radix_tree_node_cachep"].size.value_(),
        xa_chunk_shift=xarrays.chunk_shift(prog),
        nodes=nr_node_ids(prog),
    )


def _error_bytes(error_bytes, lru_rows):
    """Return the half width of the interval of lazy_bytes, which need not leave its certain bounds.

    :param error_bytes: the half width without them.
    :param lru_rows: rows of the table list_lrus.
    """
    low, lazy, high = (
        sum(row[name] for row in lru_rows) for name in ("lazy_charged_bytes", "lazy_bytes", "lazy_high_bytes")
    )
    return min(ceil(error_bytes), max(high - lazy, lazy - low))


def _machine(prog, memcg_list, superblocks, lru_rows, target_kernel):
    """Return the upgrade.Machine of a kernel, without what memcg_memory counts.

    :param superblocks: number of them.
    :param lru_rows: rows of the table list_lrus.
    """
    sizes = _sizes(prog, target_kernel.list_lru_one)
    online_memcgs = sum(memcg.online for memcg in memcg_list)
    object_bytes = sizes.list_lru_memcg_bytes()
    return upgrade.Machine(
        sizes=sizes,
        possible_nodes=len(nodes_in_state(prog, "N_POSSIBLE")),
        percpu_units=totals.percpu_units(prog),
        online_memcgs=online_memcgs,
        dying_memcgs=len(memcg_list) - online_memcgs,
        shrinker_ids=superblocks + _OTHER_SHRINKERS,
        list_lru_bytes=sum(
            row["lazy_bytes"] - row["lazy_object_bytes"] + row["lazy_memcgs"] * object_bytes for row in lru_rows
        ),
        percpu_chunks=None,
        memcg_percpu_bytes=None,
        shared_caches_bytes=None,
        css_ids=[memcg.css_id for memcg in sorted(memcg_list, key=lambda memcg: not memcg.online)],
        present_cpus=totals.present_cpus(prog),
        # Unless the cgroups of this kernel can be read.
        has_psi=True,
        has_perf_events=True,
        is_cgroup_v1=False,
    )


def _list_lru_row(lru, findings, estimator):
    return {
        "address": lru.address,
        "owner": lru.owner,
        "superblock": lru.superblock,
        "name": lru.name,
        "memcg_aware": lru.memcg_aware,
        "nodes": lru.nodes,
        "cache_ids": findings.cache_ids if lru.cache_ids is None else lru.cache_ids,
        "list_lru_one_objects": lru.list_lru_one_objects,
        "list_lru_one_size": findings.object_bytes,
        "list_lru_one_bytes": lru.list_lru_one_bytes,
        "pointer_array_bytes": lru.pointer_array_bytes,
        "node_array_bytes": lru.node_array_bytes,
        "xa_node_bytes": lru.xa_node_bytes,
        "items": lru.root_items + lru.memcg_items,
        "root_items": lru.root_items,
        "memcg_items": lru.memcg_items,
        "memcgs_with_items": len(lru.items_by_id),
        **estimator.columns(lru),
    }


def _superblock_row(sb, owner):
    s_id, s_id_raw = text(sb.s_id)
    mountpoint, mountpoint_raw = (None, None) if sb.mountpoint is None else text(sb.mountpoint)
    return {
        "address": sb.address,
        "fstype": escaped_text(sb.fstype),
        "s_id": s_id,
        "s_id_raw": s_id_raw,
        "s_dev": sb.s_dev,
        "s_flags": sb.s_flags,
        "mounts": sb.mounts,
        "mountpoint": mountpoint,
        "mountpoint_raw": mountpoint_raw,
        "kernel_internal": sb.kernel_internal,
        "detached": sb.detached,
        "owner": owner,
    }


def _memcg_rows(findings, memcg_list, object_charges, estimator):
    items = {}
    lists = {}
    for lru in findings.list_lrus:
        for index, count in lru.items_by_id.items():
            items[index] = items.get(index, 0) + count
            lists[index] = lists.get(index, 0) + 1
    lazy_lists = estimator and estimator.lazy_lists
    for memcg in memcg_list:
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
            "lists_charged": object_charges and estimator.lists_charged[memcg],
            "lazy_lists": lazy_lists[memcg] if memcg.online and memcg.parent else None,
            "serial_nr": memcg.serial_nr,
            "dir_rev": memcg.dir_rev,
        }


def _dying_memcg_page_rows(prog, dying_pages, sbs):
    """Return the rows of the pages of dying memcgs, and the note that they could not be read, or None."""
    try:
        groups = dying_pages.groups(sbs) if dying_pages else ()
    except UNREADABLE as e:
        return [], _DYING_NOTE % e
    rows = []
    for group in groups:
        path, path_raw = (None, None) if group.file.path is None else text(group.file.path)
        rows.append(
            {
                "parent": group.parent and group.parent.css_id,
                "kind": group.kind,
                "superblock": group.file.superblock,
                "inode": group.file.inode,
                "deleted": group.file.is_deleted,
                "path": path,
                "path_raw": path_raw,
                "files": len(group.mappings),
                "memcgs": len(group.memcgs),
                "pages": group.pages,
                "bytes": group.pages * prog["PAGE_SIZE"].value_(),
            }
        )
    return rows, None


def _target_row(kernel, findings, sbs, memcg_list):
    prog = kernel.prog
    uts = prog["init_uts_ns"].name.read_()
    captured_s, uptime_s, booted_us = _clock(prog)
    page_bytes = prog["PAGE_SIZE"].value_()
    memory_bytes = memmap.total_pages(prog) * page_bytes
    active_objects = cache_bytes = None
    if findings.object_cache:
        active_objects, cache_bytes = slab.cache_usage(findings.object_cache, memory_bytes)
    online_memcgs = [memcg for memcg in memcg_list if memcg.online and memcg.parent]
    cached_objects = sum(lru.list_lru_one_objects for lru in findings.list_lrus) if findings.object_cache else None
    reads, read_bytes = budget.reads()
    return {
        "collector_version": __version__,
        "model_version": cost.MODEL_VERSION,
        "reads": reads,
        "read_bytes": read_bytes,
        "peak_rss_bytes": budget.peak_rss_bytes(),
        "host": escaped_text(uts.nodename.string_()),
        "kernel_release": text(uts.release.string_())[0],
        "kernel_version": text(uts.version.string_())[0],
        "arch": text(uts.machine.string_())[0],
        "page_bytes": page_bytes,
        "memory_bytes": memory_bytes,
        **totals.read(prog, memory_bytes)._asdict(),
        "captured_at": captured_s and captured_s * _MICROSECONDS,
        "booted_at": booted_us,
        "uptime_s": uptime_s,
        "boot_id": identity.boot_id(prog),
        "machine_id": identity.machine_id(prog),
        "core_id": _core_id(kernel, captured_s, uptime_s),
        "nr_node_ids": nr_node_ids(prog),
        "possible_nodes": nodes_in_state(prog, "N_POSSIBLE"),
        "online_nodes": nodes_in_state(prog, "N_ONLINE"),
        "layout": findings.layout,
        "types_source": kernel.types_source,
        "memcg_nr_cache_ids": findings.cache_ids,
        "growing_to_cache_ids": findings.growing_to,
        "online_memcgs": len(online_memcgs) if memcg_list else None,
        "dying_memcgs": sum(1 for memcg in memcg_list if not memcg.online) if memcg_list else None,
        "max_online_id": max((memcg.cache_id for memcg in online_memcgs if memcg.cache_id is not None), default=None),
        "superblocks": len(sbs),
        "list_lrus": len(findings.list_lrus),
        "slab_cache": findings.object_cache and text(c_string(prog, findings.object_cache.name.value_()))[0],
        "slab_cache_active_objects": active_objects,
        "slab_cache_bytes": cache_bytes,
        "list_lru_one_in_cache": cached_objects,
        "lazy_target": None,
        "lazy_basis": None,
        "lazy_error_bytes": None,
        "target_kernel": None,
        "consistency": "raced" if findings.race_notes else "exact",
    }


def _growth_note(findings):
    """Return the note that memcg_nr_cache_ids was being doubled, or None."""
    if findings.growing_to is None:
        return None
    aware_lrus = [lru for lru in findings.list_lrus if lru.memcg_aware]
    grown = sum(lru.cache_ids == findings.growing_to for lru in aware_lrus)
    return "the ids were growing from %d to %d: %d of %d list_lrus have grown" % (
        findings.cache_ids,
        findings.growing_to,
        grown,
        len(aware_lrus),
    )


def _slab_note(findings, row):
    """Return the note that the list_lru_ones of an eager kernel differ too much from their slab cache, or None.

    :param row: of the table targets.
    """
    active, counted = row["slab_cache_active_objects"], row["list_lru_one_in_cache"]
    if findings.layout not in layouts.EAGER or not counted:
        return None
    if active is None:
        return "list_lru_ones could not be compared with %s, whose objects drgn cannot count" % row["slab_cache"]
    unexplained = active - counted
    if 0 <= unexplained <= max(_MAX_UNEXPLAINED_OBJECTS, counted * _MAX_UNEXPLAINED_PART):
        return None
    reason = "one of the two is wrong" if unexplained < 0 else "the others have another user, or are missing here"
    return "%s has %d active objects, %d counted list_lru_ones: %s" % (row["slab_cache"], active, counted, reason)


def _list_lru_notes(findings):
    """Yield a note on the list_lrus of an unknown owner, and one on those that were being destroyed."""
    count = sum(lru.owner == "unknown" for lru in findings.list_lrus)
    if count:
        yield "list_lrus of an unknown owner: %d" % count
    if findings.destroyed_lrus:
        yield "list_lrus that an unmount was freeing, counted as empty: %d" % findings.destroyed_lrus


def _clock(prog):
    """Return the kernel's time and its uptime in seconds, and its time of boot in microseconds, or three times None.

    Times are since the epoch. The time of boot stays the same to the microsecond until the clock is set.
    """
    try:
        timekeeper = _timekeeper(prog)
        epoch_s = timekeeper.xtime_sec.value_()
        offs_boot = timekeeper.offs_boot
        # Before commit 2456e8553544 ("ktime: Get rid of the union") (in v4.10).
        if has_member(offs_boot.type_, "tv64"):
            offs_boot = offs_boot.tv64
        offs_boot_ns = offs_boot.value_()
        monotonic_s = timekeeper.wall_to_monotonic.tv_sec.value_()
        monotonic_ns = timekeeper.wall_to_monotonic.tv_nsec.value_()
    except (LookupError, FaultError, AttributeError):
        return None, None, None
    low, high = _PLAUSIBLE_SECONDS
    if not low < epoch_s < high:
        return None, None, None
    uptime_s = epoch_s + monotonic_s + offs_boot_ns // 10**9
    if not (abs(uptime_s) < _MAX_UPTIME_S and 0 <= monotonic_ns < 10**9):
        return None, None, None
    booted_us = -(monotonic_s * 10**9 + monotonic_ns + offs_boot_ns) // 1000
    return epoch_s, max(0, uptime_s), min(booted_us, epoch_s * _MICROSECONDS)


def _core_id(kernel, captured_s, uptime_s):
    """Return a name that all copies of a core have in common, or None for a running kernel or an unreadable clock."""
    if kernel.core_bytes is None or captured_s is None:
        return None
    node_name = kernel.prog["init_uts_ns"].name.nodename.read_().string_()
    identity = b"%s %s %d" % (kernel.prog["VMCOREINFO"].string_(), node_name, captured_s - uptime_s)
    return "%x-%x-%08x" % (captured_s, kernel.core_bytes, zlib.crc32(identity))


def _timekeeper(prog):
    try:
        # Since commit 22c62b9a84b8 ("timekeeping: Introduce auxiliary timekeepers") (in v6.17).
        return prog["timekeeper_data"][prog.constant("TIMEKEEPER_CORE")].timekeeper
    except LookupError:
        pass
    try:
        return prog["tk_core"].timekeeper
    except LookupError:
        # Before v6.13 the struct of tk_core is anonymous, so BTF cannot name its type. It contains a sequence count and
        # then the timekeeper.
        tk_core = prog.symbol("tk_core").address
        try:
            # Since commit 025e82bcbc34 ("timekeeping: Use sequence counter with associated raw spinlock") (in v5.9).
            seqcount = prog.type("seqcount_raw_spinlock_t")
        except LookupError:
            seqcount = prog.type("seqcount_t")
        align = alignof(prog.type("struct timekeeper"))
        return Object(prog, "struct timekeeper", address=tk_core + -(-sizeof(seqcount) // align) * align)
