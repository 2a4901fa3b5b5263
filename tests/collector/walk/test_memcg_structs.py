"""The structs of each memcg: by hand from the kernels' sources, and compared with the guests' slabinfo."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.collector.walk import memcg_structs, memcgs
from pipeline.collector.walk.held import Held
from tests.collector.conftest import CORES, Core
from tests.collector.made import SyntheticKernel

BY_NAME = {core.name: core for core in CORES}
PERCPU_REF_DATA = OBJ_CGROUP = 64

# What each kernel allocates: mem_cgroup and memcg_vmstats of a memcg; mem_cgroup_per_node and lruvec_stats of a node;
# cgroup and psi_group; obj_cgroups. In bytes of the slab caches for their sizes, as pahole shows these.
SIZES = {
    # 2816 + 8 * nodes; 720; 2688.
    "5.10": ([4096], [1024], [4096], "memcg"),
    # 2176 + 8 * nodes, 1040; 2560; 1792, psi_group.
    "6.1": ([4096, 2048], [4096], [2048, 1024], "memcg"),
    # 1728 + 8 * nodes, 1448; 1920, 744; 2304, psi_group.
    "6.12": ([2048, 2048], [2048, 1024], [4096, 1024], "memcg"),
    # 1664 + 8 * nodes and 1920 in caches of their own, 1784; 1128; 2368, psi_group.
    "7": ([1728, 2048], [1920, 2048], [4096, 1024], "node"),
}


@pytest.mark.parametrize(
    ("name", "series", "nodes"),
    [
        ("deb510-n1", "5.10", 1),
        ("deb510-n2", "5.10", 2),
        ("deb510-offline", "5.10", 2),
        ("deb61-n2", "6.1", 2),
        ("deb612-n4", "6.12", 4),
        ("deb7-n2", "7", 2),
    ],
)
def test_bytes_by_hand(name: str, series: str, nodes: int) -> None:
    core = BY_NAME[name]
    memcg_bytes, node_bytes, cgroup_bytes, objcg_owner = SIZES[series]
    structs = sum(memcg_bytes) + nodes * sum(node_bytes)
    # percpu_ref_data of the css and of the cgroup's own css.
    refs = 2 * PERCPU_REF_DATA
    objcgs = (nodes if objcg_owner == "node" else 1) * (OBJ_CGROUP + PERCPU_REF_DATA)
    # The cgroup_bpf's reference is dropped when the cgroup is removed; up to v6.7 the obj_cgroup goes to the parent.
    dying = structs + sum(cgroup_bytes) + refs + (0 if series in ("5.10", "6.1") else objcgs)
    online = structs + sum(cgroup_bytes) + refs + PERCPU_REF_DATA + objcgs
    # The root's css has no reference count, and its cgroup is not a slab object. It has obj_cgroups since v7.1.
    root = structs + (objcgs if series == "7" else 0)
    prog = core.kernel.prog
    assert memcg_structs.count(prog, memcgs.walk(prog)).held == Held(
        core.target["online_memcgs"] * online + root, core.target["dying_memcgs"] * dying, 0
    )


def test_no_struct_is_missed_of_those_with_a_cache_of_their_own() -> None:
    """Since v6.16 only memcgs use the two caches, of which the guest counts the objects."""
    core = BY_NAME["deb7-n2"]
    memcg_list = memcgs.walk(core.kernel.prog)
    nodes = memcgs.node_structs(core.kernel.prog, memcg_list, memcgs.Pointers(core.kernel.prog))
    assert core.slab_active("mem_cgroup") == len(memcg_list)
    assert core.slab_active("mem_cgroup_per_node") == sum(map(len, nodes.values()))


def test_structs_are_in_the_guests_slabs(core: Core) -> None:
    """All are slab objects here: at most as many bytes as the guest has of active ones."""
    objects = [line.split() for line in core.truth("slabinfo").splitlines()[2:]]
    active_bytes = sum(int(fields[1]) * int(fields[3]) for fields in objects)
    prog = core.kernel.prog
    assert 0 < memcg_structs.count(prog, memcgs.walk(prog)).held.total_bytes < active_bytes


DECLARATIONS = """
struct mem_cgroup { unsigned long css[4]; void *nodeinfo[0]; };
struct mem_cgroup_per_node { unsigned long lruvec[4]; };
struct cgroup { unsigned long self[20]; unsigned long ancestors[0]; };
"""


@pytest.fixture
def kernel() -> SyntheticKernel:
    kernel = SyntheticKernel(DECLARATIONS)
    for size in (64, 192, 256):
        kernel.cache(f"kmalloc-{size}", size)
    kernel.variable("nr_node_ids", "unsigned int", 1)
    return kernel


class Memcg(SimpleNamespace):
    __hash__ = object.__hash__


def memcg(kernel: SyntheticKernel, parent: Any, cache: str = "kmalloc-192") -> Any:
    """A memcg without nodes, and its cgroup of a slab cache."""
    return Memcg(address=kernel.slab("kmalloc-64"), cgroup=kernel.slab(cache), parent=parent, online=True)


def test_a_deeper_cgroup_can_be_of_a_larger_slab_cache(kernel: SyntheticKernel) -> None:
    root = memcg(kernel, None)
    outer = [memcg(kernel, root) for _ in range(3)]
    inner = [memcg(kernel, outer[0], "kmalloc-256"), memcg(kernel, outer[2], "kmalloc-256")]
    memcg_list = [root, *outer, *inner]
    assert memcg_structs.count(kernel.prog, memcg_list).held == Held(6 * 64 + 3 * 192 + 2 * 256, 0, 0)


def test_cgroups_of_a_level_are_measured_by_a_sample(kernel: SyntheticKernel) -> None:
    """Of 200 whose struct pages lie far from one another, 66 are measured, each with two reads."""
    kernel.cache("kmalloc-4k", 4096)
    root = memcg(kernel, None)
    memcg_list = [root]
    for _ in range(200):
        memcg_list.append(memcg(kernel, root, "kmalloc-4k"))
        kernel.next_pfn += 256
    kernel.reads = 0
    assert memcg_structs.count(kernel.prog, memcg_list).held == Held(201 * 64 + 200 * 4096, 0, 0)
    assert kernel.reads < 200
