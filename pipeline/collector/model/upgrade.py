"""What memory cgroups would cost on a newer kernel for the same work.

Importable without drgn. The sizes of structs are those of the TargetKernel. They are allocated as the audited kernel's
kmalloc() allocates them.
"""

from collections import Counter, namedtuple

_POINTER_BYTES = 8
_LONG_BYTES = 8
# A percpu_counter has an s32 for each CPU, a percpu_ref a long.
_COUNTER_BYTES = 4
# The caches of memcgs have SLAB_HWCACHE_ALIGN. Kernels for x86_64 align to 64 bytes.
_CACHE_LINE_BYTES = 64
# PAGE_ALLOC_COSTLY_ORDER, the largest order of a slab with more than one slot.
_MAX_SLAB_ORDER = 3
# The state of shrinkers is allocated for each 64 ids: a bit and nr_deferred of each.
_IDS_PER_UNIT = 64
_UNIT_BYTES = _LONG_BYTES + _IDS_PER_UNIT * _LONG_BYTES
# sizeof(struct memcg_shrinker_map), before its bits: a struct rcu_head.
_SHRINKER_MAP_BYTES = 16


class Machine(
    namedtuple(
        "Machine",
        "sizes possible_nodes percpu_units online_memcgs dying_memcgs shrinker_ids list_lru_bytes percpu_chunks "
        "memcg_percpu_bytes shared_caches_bytes css_ids present_cpus has_psi has_perf_events is_cgroup_v1",
    )
):
    """What the prediction depends on of an audited machine. None is what is not known.

    sizes: cost.Sizes, with the list_lru_one of the newer kernel; possible_nodes: number of them; percpu_units:
    pcpu_nr_units; online_memcgs, dying_memcgs: numbers of memcgs, the root among them; shrinker_ids: number of ids that
    memcg-aware shrinkers have needed; list_lru_bytes: bytes of all list_lrus with these sizes; percpu_chunks:
    percpu.Chunks; memcg_percpu_bytes: per-CPU bytes of all memcgs; shared_caches_bytes: what the objects in slab caches
    of memcgs would take besides their own bytes in shared caches, as since v5.9; css_ids: list of the
    css.id of each online memcg, then of each dying one; present_cpus: number of them; has_psi, has_perf_events,
    is_cgroup_v1: the fields of percpu.CgroupForm.
    """

    __slots__ = ()


Prediction = namedtuple("Prediction", "upgraded_bytes rule")
"""The bytes of one part on the newer kernel, and in words how they are computed."""


def predict(machine, kernel):
    """Return the Prediction of each part of the table memcg_memory whose facts are known: dict by part.

    :param machine: Machine.
    :param kernel: TargetKernel.
    """
    count = "%d memcgs" % (machine.online_memcgs + machine.dying_memcgs)
    if not kernel.has_memcg_v1 and machine.is_cgroup_v1:
        # They have to move to cgroup2.
        machine = machine._replace(is_cgroup_v1=False, has_perf_events=True)
    if kernel.reparents_folios and machine.dying_memcgs:
        css_ids = machine.css_ids and machine.css_ids[: machine.online_memcgs]
        machine = machine._replace(dying_memcgs=0, css_ids=css_ids)
        count = "%d online memcgs (dying ones end since v7.1)" % machine.online_memcgs
    memcgs, nodes = machine.online_memcgs + machine.dying_memcgs, machine.possible_nodes
    form = "for %d nodes" % nodes
    form += "" if machine.has_psi else ", PSI off"
    form += ", cgroup v1" if machine.is_cgroup_v1 else ""
    predictions = {
        "memcg_structs": Prediction(_struct_bytes(machine, kernel), "%s * structs %s" % (count, form)),
        "memcg_caches_arrays": Prediction(0, "none since v5.9"),
    }
    if machine.css_ids and machine.present_cpus is not None:
        rule = "free slots of slabs with structs in the order of css ids up to %d" % max(machine.css_ids)
        predictions["memcg_slab_left"] = Prediction(slab_left_bytes(machine, kernel), rule)
    if machine.list_lru_bytes is not None:
        rule = "lazy_bytes with list_lru_memcg of %d bytes" % machine.sizes.list_lru_memcg_bytes()
        predictions["list_lru"] = Prediction(machine.list_lru_bytes, rule)
    if machine.shrinker_ids is not None:
        info_bytes = shrinker_info_bytes(machine.sizes, kernel, machine.shrinker_ids)
        rule = "%s * %d nodes * shrinker_info of %d ids" % (count, nodes, machine.shrinker_ids)
        predictions["shrinker_info"] = Prediction(memcgs * nodes * info_bytes, rule)
    if machine.percpu_units is not None:
        rule = "%s * %d per-CPU units * counters %s" % (count, machine.percpu_units, form)
        percpu_bytes = machine.percpu_units * _unit_bytes(machine, kernel)
        predictions["memcg_percpu"] = Prediction(percpu_bytes, rule)
        if machine.percpu_chunks is not None and machine.memcg_percpu_bytes:
            left_bytes = percpu_left_bytes(machine.percpu_chunks) * percpu_bytes // machine.memcg_percpu_bytes
            rule = "about a tenth of the pages without an allocation stays since v5.14"
            predictions["percpu_left"] = Prediction(left_bytes, rule)
    if machine.shared_caches_bytes is not None:
        rule = "the same objects in full slabs of shared caches, with a pointer each"
        predictions["memcg_kmem_caches"] = Prediction(machine.shared_caches_bytes, rule)
    return predictions


def shrinker_info_bytes(sizes, kernel, ids):
    """Return the bytes of the shrinker_info of one memcg and node, with its units.

    It has units since commit 307bececcd12 ("mm: shrinker: add a secondary array for shrinker_info::{map,
    nr_deferred}") (in v6.7).

    :param sizes: cost.Sizes.
    :param kernel: TargetKernel.
    :param ids: number of ids of shrinkers.
    """
    return sum(size * number for size, number in _shrinker_allocations(sizes, kernel, ids).items())


def _shrinker_allocations(sizes, kernel, ids):
    """Return the number of allocations of each size for a shrinker_info: dict by bytes."""
    units = -(-ids // _IDS_PER_UNIT)
    if kernel.shrinker_info_unit is None:
        return {sizes.kmalloc_bytes(kernel.shrinker_info + units * _UNIT_BYTES): 1}
    allocations = Counter({sizes.kmalloc_bytes(kernel.shrinker_info_unit): units})
    allocations[sizes.kmalloc_bytes(kernel.shrinker_info + units * _POINTER_BYTES)] += 1
    return allocations


def percpu_left_bytes(chunks):
    """Return the bytes that a kernel since v5.14 would leave unused with the same per-CPU allocations.

    Since commit f183324133ea ("percpu: implement partial chunk depopulation") (in v5.14) a chunk gives back its pages
    without an allocation when they are a quarter of its pages. How many of less than a quarter stay depends on the
    order in which memcgs were removed: on six guests 4 to 21 % of all pages (docs/accuracy.md). A tenth is assumed.

    :param chunks: percpu.Chunks.
    """
    empty_bytes = chunks.populated_bytes - chunks.partly_used_bytes
    return chunks.partly_used_bytes - chunks.used_bytes + min(empty_bytes, chunks.populated_bytes // 10)


def shrinker_map_bytes(sizes, ids):
    """Return the bytes of the memcg_shrinker_map of one memcg and node, v4.19 to v5.12.

    Since commit 3c6f17e6c5d0 ("mm: vmscan: add per memcg shrinker nr_deferred") (in v5.13) it is a shrinker_info.
    """
    return sizes.kmalloc_bytes(_SHRINKER_MAP_BYTES + -(-ids // _IDS_PER_UNIT) * _LONG_BYTES)


class _Struct(namedtuple("_Struct", "cache slot_bytes number of_node")):
    """One struct of each memcg, or of each of its nodes.

    cache: name of the slab cache, empty for kmalloc()'s. slot_bytes: bytes as allocated. number: structs of all memcgs.
    of_node: whether each node has one, in its own memory.
    """

    __slots__ = ()


def _struct_bytes(machine, kernel):
    """Return the bytes of the structs that mem_cgroup_css_alloc(), cgroup_create() and their callees allocate."""
    return sum(struct.slot_bytes * struct.number for struct in _structs(machine, kernel))


def _structs(machine, kernel):
    """Return the list of _Struct of a kernel.

    The cgroup of the root memcg is static. Pointers to a cgroup's ancestors do not change its kmalloc() size up to a
    depth of 30.
    """
    kmalloc, nodes = machine.sizes.kmalloc_bytes, machine.possible_nodes
    memcg = kernel.mem_cgroup + machine.sizes.nodes * _POINTER_BYTES
    memcgs = machine.online_memcgs + machine.dying_memcgs
    cgroups = memcgs - 1
    if kernel.has_memcg_caches:
        structs = [
            _Struct("mem_cgroup", _align(memcg), memcgs, False),
            _Struct("mem_cgroup_per_node", _align(kernel.mem_cgroup_per_node), memcgs * nodes, True),
        ]
    else:
        structs = [
            _Struct("", kmalloc(memcg), memcgs, False),
            _Struct("", kmalloc(kernel.mem_cgroup_per_node), memcgs * nodes, True),
        ]
    if kernel.lruvec_stats is None:
        structs.append(_Struct("", kmalloc(kernel.memcg_vmstats), memcgs, False))
    else:
        # Both are charged since commit aab6103b97f1 ("mm: memcg: account memory used for memcg vmstats and lruvec
        # stats") (in v6.10). What is charged has caches of its own since commit 494c1dfe855e ("mm: memcg/slab: create
        # a new set of kmalloc-cg-<n> caches") (in v5.14).
        structs.append(_Struct("kmalloc-cg", kmalloc(kernel.memcg_vmstats), memcgs, False))
        structs.append(_Struct("kmalloc-cg", kmalloc(kernel.lruvec_stats), memcgs * nodes, True))
    structs.append(_Struct("", kmalloc(kernel.cgroup), cgroups, False))
    if machine.has_psi:
        structs.append(_Struct("", kmalloc(kernel.psi_group), cgroups, False))
    objcgs = _objcgs(kernel, nodes, memcgs)
    structs.append(_Struct("", kmalloc(kernel.obj_cgroup), objcgs, kernel.has_objcg_of_nodes))
    # css, cgroup and obj_cgroup have a percpu_ref each, cgroup_bpf one until the cgroup is removed, but not with cgroup
    # v1 since commit 2190df6c9137 ("cgroup/bpf: only cgroup v2 can be attached by bpf programs") (in v6.13, and in
    # stable kernels).
    refcnt = kmalloc(kernel.percpu_ref_data)
    structs += [_Struct("", refcnt, cgroups, False)] * 2
    if not machine.is_cgroup_v1:
        structs.append(_Struct("", refcnt, machine.online_memcgs - 1, False))
    structs.append(_Struct("", refcnt, objcgs, kernel.has_objcg_of_nodes))
    return structs


def slab_left_bytes(machine, kernel):
    """Return the bytes of free slots of the slabs that hold the structs of memcgs, after the same churn.

    css ids are given again, the lowest first, and so are free slots: a memcg is taken to have its structs in the order
    of its id. The slabs in between are freed. What is not of a node is taken to be on one. When there are more
    superblocks than ever, the arrays for shrinkers are made anew and get further units, which fill free slots of their
    size. Only the first unit is made with its memcg. A memcg that was created since then has all of them from the
    start: no core shows how many have, so that more can be left (docs/accuracy.md).
    """
    sizes, nodes = machine.sizes, machine.possible_nodes
    every_node, first_node, arrays = Counter(), Counter(), Counter()
    for struct in _structs(machine, kernel):
        (every_node if struct.of_node else first_node)[struct.cache, struct.slot_bytes] += 1
    if machine.shrinker_ids is not None:
        arrays.update({("", size): n for size, n in _shrinker_allocations(sizes, kernel, machine.shrinker_ids).items()})
        if kernel.shrinker_info_unit is not None and machine.shrinker_ids:
            unit = "", sizes.kmalloc_bytes(kernel.shrinker_info_unit)
            every_node[unit] += 1
            arrays[unit] -= 1
    total_bytes = 0
    for counts, number in ((every_node + first_node, 1), (every_node, nodes - 1)):
        for (cache, slot_bytes), structs in counts.items():
            slots = slab_slots(slot_bytes, machine.present_cpus, sizes.page_bytes)
            free_slots = _free_slots(machine.css_ids, structs, slots) - arrays[cache, slot_bytes] * len(machine.css_ids)
            total_bytes += number * max(0, free_slots) * slot_bytes
    return total_bytes


def _free_slots(ids, structs, slots):
    """Return the free slots of slabs when each id has its structs in turn, and slabs without any are freed."""
    slabs = set()
    for css_id in ids:
        slabs.update(range(css_id * structs // slots, (css_id * structs + structs - 1) // slots + 1))
    return len(slabs) * slots - len(ids) * structs


def slab_slots(slot_bytes, cpus, page_bytes):
    """Return the number of slots of a slab: calculate_order() of mm/slub.c.

    As since commit 0fe2735d5e2e ("mm/slub: remove min_objects loop from calculate_order()") (in v6.8). Before that the
    sizes of kmalloc() have the same.

    :param cpus: number of CPUs that are present.
    """
    max_bytes = page_bytes << _MAX_SLAB_ORDER
    if not 0 < slot_bytes <= max_bytes:
        return 1
    min_slots = min(4 * (cpus.bit_length() + 1), max_bytes // slot_bytes)
    for fraction in (16, 8, 4, 2):
        for order in range(_MAX_SLAB_ORDER + 1):
            slab_bytes = page_bytes << order
            if slab_bytes >= min_slots * slot_bytes and slab_bytes % slot_bytes <= slab_bytes // fraction:
                return slab_bytes // slot_bytes
    return 1


def _unit_bytes(machine, kernel):
    """Return the bytes of the per-CPU allocations of all memcgs and their cgroups on one CPU.

    The root's cgroup has no psi_group, and in cgroup2 static counters of cgroup_rstat. A perf_cgroup is freed when the
    cgroup is removed. So are the percpu_refs: of the css of memcg and perf_event, which the root lacks, of cgroup,
    cgroup_bpf and obj_cgroup.
    """
    nodes, online_memcgs = machine.possible_nodes, machine.online_memcgs
    memcgs = online_memcgs + machine.dying_memcgs
    memcg_bytes = kernel.memcg_vmstats_percpu + nodes * kernel.lruvec_stats_percpu + _COUNTER_BYTES
    rstat_bytes = kernel.cgroup_rstat_cpu
    if rstat_bytes is None:
        # Since commit 5da3bfa029d6 ("cgroup: use separate rstat trees for each subsystem") (in v6.16).
        memcg_bytes += kernel.css_rstat_cpu
        rstat_bytes = kernel.cgroup_rstat_base_cpu + kernel.css_rstat_cpu
    refcnts = (2 - machine.is_cgroup_v1) * online_memcgs + (1 + machine.has_perf_events) * (online_memcgs - 1)
    refcnts += _objcgs(kernel, nodes, online_memcgs)
    return (
        memcgs * memcg_bytes
        + (memcgs - 1) * machine.has_psi * kernel.psi_group_cpu
        + (memcgs - 1 + machine.is_cgroup_v1) * rstat_bytes
        + machine.has_perf_events * online_memcgs * kernel.perf_cgroup_info
        + refcnts * _LONG_BYTES
    )


def _objcgs(kernel, nodes, memcgs):
    """Return the number of obj_cgroups of memcgs. The root has some only where each node has one."""
    return memcgs * nodes if kernel.has_objcg_of_nodes else memcgs - 1


def _align(size):
    return -(-size // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES
