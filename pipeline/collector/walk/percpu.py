"""Per-CPU memory: the pages that no allocation uses, and the allocations of memcgs.

The kernel has per-CPU memory in chunks. A chunk has an address range for each unit, and all units have the same pages
populated and the same bytes allocated. So every figure is the count of one unit times pcpu_nr_units. A unit belongs to
a possible CPU, or is padding: that has no memory, but Percpu of /proc/meminfo has it, too.
"""

from collections import namedtuple
from contextlib import suppress

from drgn import TypeKind, offsetof, sizeof

from ..access.memory import Members, check_range, has_member, is_running, member_type, read, walk_list, words
from ..status import CollectError
from .held import Held
from .memcgs import Pointers
from .nodes import nr_node_ids

# Bounds pcpu_nr_slots: one for each power of two of an int, and four for other chunks.
_MAX_SLOTS = 64
# Bounds pcpu_nr_units: the largest NR_CPUS is 8192; padding can almost double it.
_MAX_UNITS = 1 << 14
# Bounds the walk over broken lists: with the smallest chunks, of 32 KB a unit, it is 2 GB a CPU.
_MAX_CHUNKS = 1 << 16
# Bounds pcpu_chunk.nr_pages: 4 GB a unit.
_MAX_PAGES = 1 << 20
_LIST_HEAD_BYTES = 16
# percpu_ref marks its state in the low bits (__PERCPU_REF_FLAG_BITS). Allocations are aligned to PCPU_MIN_ALLOC_SIZE.
_FLAGS = 3
_REF_POINTER = "percpu_count_ptr"


class Chunks(namedtuple("Chunks", "populated_bytes partly_used_bytes used_bytes")):
    """Bytes of all chunks but the first and the reserved one, with which the kernel is booted and which it keeps whole.

    populated_bytes: of their pages, in all units, like the others. partly_used_bytes: of the pages with an allocation.
    used_bytes: allocated of these pages.
    """

    __slots__ = ()


def left(prog):
    """Return the Chunks of a kernel: what they leave unused is populated_bytes - used_bytes.

    :raises CollectError: ``bad_core``: the chunks do not have the pages that the kernel counts.
    :raises LookupError: the kernel is older than commit 40064aeca35c ("percpu: replace area map allocator with bitmap")
        (in v4.14), before which chunks do not have these members.
    """
    page_bytes = prog["PAGE_SIZE"].value_()
    first_chunk = prog["pcpu_first_chunk"].value_()
    populated_pages = empty_pages = used_bytes = 0
    first = None
    for address, fields in _walk_chunks(prog):
        pages = check_range(1, fields.pages, _MAX_PAGES, "pcpu_chunk.nr_pages")
        populated = check_range(0, fields.populated, pages, "pcpu_chunk.nr_populated")
        empty = check_range(0, fields.empty, populated, "pcpu_chunk.nr_empty_pop_pages")
        free_bytes = check_range(0, fields.free, pages * page_bytes, "pcpu_chunk.free_bytes")
        if address == first_chunk:
            first = fields
        else:
            populated_pages += populated
            empty_pages += empty
            # An area is allocated before its pages are populated.
            used_bytes += min(pages * page_bytes - free_bytes, (populated - empty) * page_bytes)
    if first is None:
        raise CollectError("bad_core", "the first per-CPU chunk is not on the lists of chunks")
    if not is_running(prog):
        # In front of the first chunk are the static variables and the reserved chunk.
        first_end = first.base + first.pages * page_bytes - first.end_offset
        first_pages = (first_end - prog["pcpu_base_addr"].value_()) // page_bytes
        _check_count(prog, first_pages + populated_pages)
    nr_units = _nr_units(prog)
    page_bytes *= nr_units
    partly_used_pages = populated_pages - empty_pages
    return Chunks(populated_pages * page_bytes, partly_used_pages * page_bytes, used_bytes * nr_units)


def _check_count(prog, pages):
    """Compare the pages of all chunks with the kernel's count, which balance work changes with each chunk."""
    try:
        counted_pages = prog["pcpu_nr_populated"].value_()
    except LookupError:
        # Before commit 7e8a6304d541 ("/proc/meminfo: add percpu populated pages count") (in v4.20).
        return
    if pages != counted_pages:
        message = "the per-CPU chunks have %d pages, but the kernel counts %d" % (pages, counted_pages)
        raise CollectError("bad_core", message)


def _nr_units(prog):
    return check_range(1, prog["pcpu_nr_units"].value_(), _MAX_UNITS, "pcpu_nr_units")


def _walk_chunks(prog):
    """Yield the address and the decoded members of each ``struct pcpu_chunk`` but the reserved one."""
    chunk_type = prog.type("struct pcpu_chunk")
    members = Members(
        prog,
        chunk_type,
        next="list.next",
        base="base_addr",
        pages="nr_pages",
        populated="nr_populated",
        empty="nr_empty_pop_pages",
        free="free_bytes",
        end_offset="end_offset",
    )
    lists, count = _lists(prog)
    heads = words(prog, read(prog, lists, count * _LIST_HEAD_BYTES))
    for i, first in enumerate(heads[::2]):
        head = lists + i * _LIST_HEAD_BYTES
        for address, fields in walk_list(prog, members, first, head, offsetof(chunk_type, "list"), _MAX_CHUNKS):
            yield address, fields


def _lists(prog):
    """Return the address of the array of lists of chunks, and their number."""
    slots = check_range(1, prog["pcpu_nr_slots"].value_(), _MAX_SLOTS, "pcpu_nr_slots")
    try:
        lists = prog["pcpu_chunk_lists"].value_()
    except LookupError:
        # Before commit 3c7be18ac9a0 ("mm: memcg/percpu: account percpu memory to memory cgroups") (in v5.9).
        return prog["pcpu_slot"].value_(), slots
    try:
        # Before commit faf65dde844a ("percpu: rework memcg accounting") (in v5.14) charged allocations had chunks and
        # lists of their own.
        return lists, slots * prog.constant("PCPU_NR_CHUNK_TYPES").value_()
    except LookupError:
        return lists, slots


def pointer_paths(prog):
    """Return the paths for memcgs.Pointers."""
    return {name: (*allocations, *parts) for name, allocations, parts in _structs(prog)}


class CgroupForm(namedtuple("CgroupForm", "has_psi has_perf_events is_cgroup_v1")):
    """What the cgroups of memcgs have besides, by the kernel's configuration, command line and mounts.

    has_psi: a psi_group. has_perf_events: a perf_cgroup. is_cgroup_v1: whether memcgs are in a hierarchy of cgroup v1.
    """

    __slots__ = ()


def cgroup_form(prog, memcg_list, pointers):
    """Return the CgroupForm of a kernel, by the pointers of the cgroups of online memcgs.

    A kernel before commit 2ce7135adc9a ("psi: cgroup support") (in v4.20) has no psi_group: a newer one is expected to.

    :param memcg_list: list of Memcg, with the root.
    :param pointers: memcgs.Pointers with pointer_paths().
    """
    root = memcg_list[0]
    cgroups = [memcg.cgroup for memcg in memcg_list if memcg.online and memcg.parent] or [root.cgroup]
    cgroup_type = prog.type("struct cgroup")
    # Without CONFIG_PSI, struct psi_group is empty.
    psi_paths = _target_types(cgroup_type, ("psi", "psi.pcpu"))
    perf_paths = _target_types(cgroup_type, [path for path in _cgroup_parts(prog) if path != "psi"])

    def most_have_any(paths):
        # All cgroups agree, but on a running kernel one may have been freed since.
        found_by_cgroup = pointers.each("struct cgroup", cgroups, list(paths))
        return 2 * sum(any(found) for _, found in found_by_cgroup) > len(cgroups)

    hierarchy = Members(prog, "struct cgroup", root="root").read(prog, root.cgroup).root
    hierarchy_id = Members(prog, "struct cgroup_root", id="hierarchy_id").read(prog, hierarchy).id
    return CgroupForm(
        has_psi=most_have_any(psi_paths) or not has_member(cgroup_type, "psi"),
        has_perf_events=most_have_any(perf_paths),
        # cgroup2's cgrp_dfl_root is the first hierarchy.
        is_cgroup_v1=hierarchy_id != 0,
    )


def memcgs(prog, memcg_list, pointers=None):
    """Return the Held of the per-CPU allocations of memcgs, of their cgroups, and of the perf events of these.

    :param memcg_list: list of Memcg.
    :param pointers: memcgs.Pointers with pointer_paths(), for an audit that needs others of the same structs.
    """
    pointers = pointers or Pointers(prog, pointer_paths(prog))
    static = range(prog.symbol("__per_cpu_start").address, prog.symbol("__per_cpu_end").address)
    unit_bytes = {True: 0, False: 0}
    # By name of the struct and address: whether the memcg that it is part of is online.
    online = {"struct mem_cgroup": {memcg.address: memcg.online for memcg in memcg_list}}
    for name, allocations, parts in _structs(prog):
        if not online.get(name):
            continue
        struct_type = prog.type(name)
        sizes = {path: sizeof(target) for path, target in _target_types(struct_type, allocations).items()}
        part_paths = list(_target_types(struct_type, parts))
        if not sizes and not part_paths:
            continue
        part_addresses = [online.setdefault(parts[path], {}) for path in part_paths]
        for address, values in pointers.each(name, online[name], [*sizes, *part_paths]):
            is_online = online[name][address]
            for size, pointer in zip(sizes.values(), values):
                pointer &= ~_FLAGS
                # Those of the root are static variables.
                if pointer and pointer not in static:
                    unit_bytes[is_online] += size
            for addresses, pointer in zip(part_addresses, values[len(sizes) :]):
                if pointer:
                    # A cgroup can have a dying memcg, and an online one since its controller was enabled again.
                    addresses[pointer] = is_online or addresses.get(pointer, False)
    nr_units = _nr_units(prog)
    return Held(unit_bytes[True] * nr_units, unit_bytes[False] * nr_units, 0)


def _structs(prog):
    """Return of each struct its name, the paths of its per-CPU pointers, and a dict of path to struct of its parts.

    No kernel has all of these members. A struct comes behind those that point to it.
    """
    nodes = {"nodeinfo[%d]" % nid: "struct mem_cgroup_per_node" for nid in range(nr_node_ids(prog))}
    # percpu_ref has a long for each CPU. Since commit 7d9ab9b6adff ("percpu_ref: release percpu memory early without
    # PERCPU_REF_ALLOW_REINIT") (in v5.3) those of what is removed are freed at once.
    refcnt = "refcnt." + _REF_POINTER
    return (
        (
            "struct mem_cgroup",
            (
                "css." + refcnt,
                "css.rstat_cpu",
                "cgwb_domain.completions.events.counters",
                "vmstats_percpu",
                # Since commit 1009687a5135 ("memcg: allocate v1 event percpu only on v1 deployment") (in v6.12).
                "events_percpu",
                # From commit 815744d75152 ("mm: memcontrol: don't batch updates of local VM stats and events") (in
                # v5.2) to commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13).
                "vmstats_local",
                # Before commit 871789d4af80 ("mm, memcg: rename ambiguously named memory.stat counters and functions")
                # (in v5.2).
                "stat_cpu",
                # Before commit a983b5ebee57 ("mm: memcontrol: fix excessive complexity in memory.stat reporting") (in
                # v4.16), since which an array, of the sums of all CPUs, can have the name.
                "stat",
            ),
            dict(nodes, **{"css.cgroup": "struct cgroup", "objcg": "struct obj_cgroup"}),
        ),
        (
            "struct mem_cgroup_per_node",
            (
                "lruvec_stats_percpu",
                # Before commit 7e1c0d6f5820 ("memcg: switch lruvec stats to rstat") (in v5.15).
                "lruvec_stat_cpu",
                "lruvec_stat_local",
                # From commit 00f3ca2c2d66 ("mm: memcontrol: per-lruvec stats infrastructure") (in v4.13) to commit
                # a983b5ebee57; then an array, as "stat".
                "lruvec_stat",
            ),
            # Since commit 01b9da291c49 ("mm: memcontrol: convert objcg to be per-memcg per-node type") (in v7.1).
            {"objcg": "struct obj_cgroup"},
        ),
        ("struct obj_cgroup", (refcnt,), {}),
        (
            "struct cgroup",
            (
                "self." + refcnt,
                "bpf." + refcnt,
                "rstat_base_cpu",
                # Since commit 5da3bfa029d6 ("cgroup: use separate rstat trees for each subsystem") (in v6.16).
                "self.rstat_cpu",
                "rstat_cpu",
                # Before commit c58632b3631c ("cgroup: Rename stat to rstat") (in v4.18).
                "cpu_stat",
                "psi.pcpu",
            ),
            _cgroup_parts(prog),
        ),
        ("struct psi_group", ("pcpu",), {}),
        ("struct perf_cgroup", ("css." + refcnt, "info"), {}),
    )


def _cgroup_parts(prog):
    """Return the names of the structs that a cgroup points to and that have per-CPU memory, by path."""
    # Since commit 5f69a6577bc3 ("psi: dont alloc memory for psi by default") (in v6.0) it is not in struct cgroup.
    parts = {"psi": "struct psi_group"}
    with suppress(LookupError):  # without CONFIG_CGROUP_PERF
        # The one controller that every cgroup of cgroup2 has.
        parts["subsys[%d]" % prog.constant("perf_event_cgrp_id")] = "struct perf_cgroup"
    return parts


def _target_types(struct_type, paths):
    """Return the types that those members point to which a struct has, and which are pointers, by their paths."""
    types = {}
    for path in paths:
        if not has_member(struct_type, path):
            continue
        found_type = member_type(struct_type, path)
        if path.endswith(_REF_POINTER):
            # An unsigned long, which points to one.
            types[path] = found_type
        elif found_type.kind is TypeKind.POINTER:
            types[path] = found_type.type
    return types
