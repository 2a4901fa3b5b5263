"""The kernel's own totals of slab and per-CPU memory, as /proc/meminfo has them."""

from collections import namedtuple
from contextlib import suppress

from drgn import FaultError
from drgn.helpers.linux.cpumask import for_each_present_cpu

# Since commit d42f3245c7e2 ("mm: memcg: convert vmstat slab counters to bytes") (in v5.9) the items have the suffix _B.
# The global counters stay in pages.
_SLAB_UNRECLAIMABLE = ("NR_SLAB_UNRECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE")
_SLAB_RECLAIMABLE = ("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_RECLAIMABLE")
# The counters by the enum that names them. They belong to nodes since commit 385386cff4c6 ("mm: vmstat: move slab
# statistics from zone to node counters") (in v4.13). Before commit 75ef71840539 ("mm, vmstat: add infrastructure for
# per-node vmstats") (in v4.8) vm_stat has those of zones.
_COUNTERS = {"node_stat_item": ("vm_node_stat",), "zone_stat_item": ("vm_zone_stat", "vm_stat")}


class Totals(namedtuple("Totals", "slab_unreclaimable_bytes slab_reclaimable_bytes percpu_bytes")):
    """Totals in bytes, each None where this kernel does not have it.

    slab_unreclaimable_bytes, slab_reclaimable_bytes: SUnreclaim and SReclaimable of /proc/meminfo, without the changes
    that CPUs have not added yet. percpu_bytes: Percpu, the pages that back per-CPU allocations of all possible CPUs.
    """

    __slots__ = ()


def read(prog, memory_bytes):
    """Return the Totals of a kernel with this memory."""
    totals = (_slab_bytes(prog, _SLAB_UNRECLAIMABLE), _slab_bytes(prog, _SLAB_RECLAIMABLE), _percpu_bytes(prog))
    # Each kernel has some of each. A counter is 0 in a core that lacks its page, and too large where it is damaged.
    return Totals(*(total if total and 0 < total <= memory_bytes else None for total in totals))


def _slab_bytes(prog, names):
    for name in names:
        try:
            item = prog.constant(name)
        except LookupError:
            continue
        for counters in _COUNTERS[item.type_.tag]:
            try:
                pages = prog[counters][item.value_()].counter.value_()
            except (LookupError, FaultError):
                continue
            return pages * prog["PAGE_SIZE"].value_()
    return None


def percpu_units(prog):
    """Return the number of CPUs for which per-CPU memory is allocated, or None where it cannot be read."""
    try:
        return prog["pcpu_nr_units"].value_()
    except (LookupError, FaultError):
        return None


def present_cpus(prog):
    """Return the number of CPUs that slabs are sized for, or None: those that are present.

    If that is one, or the symbols lack them, it is the number of possible ones. So does calculate_order().
    """
    with suppress(LookupError, FaultError):
        count = sum(1 for _ in for_each_present_cpu(prog))
        if count > 1:
            return count
    return percpu_units(prog)


def _percpu_bytes(prog):
    """Return the bytes of the populated pages of all per-CPU chunks, in all units.

    Since commit 7e8a6304d541 ("/proc/meminfo: add percpu populated pages count") (in v4.20).
    """
    try:
        return prog["pcpu_nr_populated"].value_() * prog["pcpu_nr_units"].value_() * prog["PAGE_SIZE"].value_()
    except (LookupError, FaultError):
        return None
