"""The kernels to upgrade to, each with its sizes in a file of its own.

Importable without drgn. ``python -m tests.lab target-kernel 6.12`` prints such a file from the kernel's own types.
"""

import re
from collections import namedtuple

from . import estimate, v6_1, v6_6, v6_12, v7_2


class TargetKernel(
    namedtuple(
        "TargetKernel",
        "name list_lru_one mem_cgroup mem_cgroup_per_node cgroup memcg_vmstats lruvec_stats psi_group obj_cgroup "
        "percpu_ref_data shrinker_info shrinker_info_unit memcg_vmstats_percpu lruvec_stats_percpu cgroup_rstat_cpu "
        "cgroup_rstat_base_cpu css_rstat_cpu psi_group_cpu perf_cgroup_info has_memcg_v1 has_memcg_caches "
        "has_objcg_of_nodes reparents_folios",
    )
):
    """A kernel to upgrade to, as Debian builds it for x86_64 in the cloud.

    name: major and minor release.

    list_lru_one to perf_cgroup_info: sizeof() the struct, None if this kernel does not allocate it by itself.

    has_memcg_v1: memcgs can be in a hierarchy of cgroup v1, which is a choice since
    commit e93d4166b40a ("mm: memcg: put cgroup v1-specific code under a config option") (in v6.11).

    has_memcg_caches: mem_cgroup and mem_cgroup_per_node have slab caches of their own, since
    commit 97e4fc4b35dc ("mm/memcg: use kmem_cache when alloc memcg") and
    commit 1b6a58e205ed ("mm/memcg: use kmem_cache when alloc memcg pernode info") (both in v6.16).

    has_objcg_of_nodes: a memcg has an obj_cgroup for each node, since
    commit 01b9da291c49 ("mm: memcontrol: convert objcg to be per-memcg per-node type") (in v7.1).

    reparents_folios: page cache keeps no dying memcg, since
    commit f1cf8d2f36dc ("mm: memcontrol: eliminate the problem of dying memory cgroup for LRU folios") (in v7.1).
    """

    __slots__ = ()

    @property
    def lazy_layout(self):
        """The layout of its list_lrus, a key of estimate.TARGETS."""
        return "6.13" if self.list_lru_one == estimate.TARGETS["6.13"][1] else "5.18"

    def is_newer_than(self, release):
        """Whether this kernel is newer than one with a release such as 5.10.0-32-cloud-amd64."""
        audited = re.match(r"(\d+)\.(\d+)", release)
        return audited is not None and _version(self.name) > _version(audited.group())


def _version(name):
    return [int(number) for number in name.split(".")]


KERNELS = {
    "6.1": TargetKernel("6.1", **v6_1.FIELDS),
    "6.6": TargetKernel("6.6", **v6_6.FIELDS),
    "6.12": TargetKernel("6.12", **v6_12.FIELDS),
    "7.2": TargetKernel("7.2", **v7_2.FIELDS),
}
DEFAULT = "6.12"
# The kernels that --target-layout, an older form of --target-kernel, stands for.
LAYOUTS = {"5.18": "6.12", "6.13": "7.2"}


def named(name):
    """Return the TargetKernel of a name, a key of KERNELS or LAYOUTS."""
    return KERNELS[LAYOUTS.get(name, name)]


def check(kernel, layout):
    """Check that the values of --target-kernel and --target-layout, or None, do not contradict each other.

    :raises ValueError: they do.
    """
    if None not in (kernel, layout) and named(kernel).lazy_layout != layout:
        raise ValueError("--target-layout %s is not the layout of --target-kernel %s; leave it out" % (layout, kernel))
