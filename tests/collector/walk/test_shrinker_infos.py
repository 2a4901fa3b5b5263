"""The arrays with an element for each shrinker: compared with drgn's helpers, slabinfo, and arrays made by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from drgn import Object, container_of
from drgn.helpers.linux.cgroup import css_for_each_descendant_pre

from pipeline.collector.access.kernel import open_kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import memcgs, shrinker_infos
from pipeline.collector.walk.held import Held
from tests import reference
from tests.collector.conftest import CORES, Core
from tests.collector.made import SyntheticKernel, overlay

BY_NAME = {core.name: core for core in CORES}
CSS_ONLINE = 1 << 1


def count(core: Core) -> shrinker_infos.Count:
    prog = core.kernel.prog
    return shrinker_infos.count(prog, memcgs.walk(prog))


def test_each_array_is_counted_as_drgn_finds_it(core: Core) -> None:
    """One by one: the allocation of each array, and of each unit of 64 ids."""
    prog = core.kernel.prog
    sizes = {True: 0, False: 0}
    for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_()):
        memcg = container_of(css, "struct mem_cgroup", "css")
        for nid in core.target["possible_nodes"]:
            for pointer in allocations(memcg.nodeinfo[nid]):
                sizes[bool(css.flags & CSS_ONLINE)] += reference.allocated_bytes(pointer)
    assert count(core).held == Held(sizes[True], sizes[False], 0)
    assert sizes[True] > 0


def allocations(node: Object) -> list[Object]:
    """The arrays of a memcg on a node."""
    if hasattr(node, "shrinker_map"):
        return [node.shrinker_map] if node.shrinker_map else []
    info = node.shrinker_info
    if not hasattr(info, "unit"):
        return [info]
    return [info, *(info.unit[i] for i in range(-(-info.map_nr_max.value_() // 64)))]


def test_bytes_by_hand(core: Core) -> None:
    """mm/vmscan.c and mm/shrinker.c: what they request for each memcg and node, in the guest's own kmalloc caches."""
    ids = count(core).ids
    words = -(-ids // 64)
    arrays = (core.target["online_memcgs"] + core.target["dying_memcgs"] + 1) * len(core.target["possible_nodes"])
    major, minor = map(int, re.findall(r"\d+", core.truth("version"))[:2])
    if (major, minor) < (5, 13):
        # Not for the root.
        arrays -= len(core.target["possible_nodes"])
        assert count(core).held.total_bytes == arrays * core.kmalloc(16 + 8 * words)
    elif (major, minor) < (6, 7):
        assert count(core).held.total_bytes == arrays * core.kmalloc(32 + (64 * 8 + 8) * words)
    else:
        assert count(core).held.total_bytes == arrays * (core.kmalloc(24 + 8 * words) + words * core.kmalloc(520))
    # Each superblock has a shrinker, and so have deferred_split and the shadow nodes; ids are reused.
    assert ids >= core.target["superblocks"] + 2


DECLARATIONS = """
struct callback_head { struct callback_head *next; void *func; };
struct shrinker_info { struct callback_head rcu; unsigned long *nr_deferred; unsigned long *map; };
struct mem_cgroup_per_node { unsigned long lruvec[20]; struct shrinker_info *shrinker_info; };
struct mem_cgroup { unsigned long css[4]; struct mem_cgroup_per_node *nodeinfo[0]; };
"""


@dataclass(frozen=True)
class Memcg:
    address: int
    online: bool


def memcg(kernel: SyntheticKernel, online: bool, infos: list[int]) -> Memcg:
    """A memcg with the arrays of nodes 0 and 2; node 1 is not possible."""
    address = kernel.slab("kmalloc-64")
    for nid, info in zip((0, 2), infos, strict=True):
        node = kernel.put(kernel.slab("kmalloc-192"), "struct mem_cgroup_per_node", shrinker_info=info)
        kernel.words(address + 32 + 8 * nid, node)
    return Memcg(address, online)


@pytest.fixture
def kernel() -> SyntheticKernel:
    """v5.13 to v6.6, with 1,000 ids: an array takes 32 + 8,192 + 128 bytes."""
    kernel = SyntheticKernel(DECLARATIONS)
    for size in (64, 192):
        kernel.cache(f"kmalloc-{size}", size)
    kernel.variable("nr_node_ids", "unsigned int", 3)
    kernel.variable("shrinker_nr_max", "int", 1000)
    return kernel


def test_arrays_that_no_slab_cache_has(kernel: SyntheticKernel) -> None:
    """kvmalloc() takes four pages, or three of vmalloc() where it finds no four together. A new memcg has none yet."""
    memcg_list = [
        memcg(kernel, True, [kernel.compound(4), kernel.vmalloc(3)]),
        memcg(kernel, False, [kernel.vmalloc(3), kernel.vmalloc(3)]),
        memcg(kernel, False, [0, 0]),
    ]
    assert shrinker_infos.count(kernel.prog, memcg_list)[:2] == (Held(7 * 4096, 6 * 4096, 0), 1000)


def test_each_array_is_measured_while_the_ids_grow(kernel: SyntheticKernel) -> None:
    """The kernel lengthens them one after the other: from 1,000 to 2,000 ids, four pages to eight."""
    memcg_list = [
        memcg(kernel, True, [kernel.compound(8), kernel.compound(8)]),
        memcg(kernel, True, [kernel.compound(8), kernel.compound(4)]),
        memcg(kernel, True, [kernel.compound(4), kernel.compound(4)]),
    ]
    assert shrinker_infos.count(kernel.prog, memcg_list).held == Held((3 * 8 + 3 * 4) * 4096, 0, 0)


def test_units_of_arrays_that_are_longer_than_the_kernel_counts() -> None:
    """shrinker_nr_max follows when all arrays have grown."""
    prog = open_kernel(str(BY_NAME["deb612-n4"].path)).prog
    expected = count(BY_NAME["deb612-n4"])
    overlay(prog, prog["shrinker_nr_max"].address_, (1).to_bytes(4, "little"))
    assert shrinker_infos.count(prog, memcgs.walk(prog)) == expected._replace(ids=1)


def test_an_impossible_number_of_ids_is_not_read() -> None:
    """The pointers to its units would take 256 MB."""
    prog = open_kernel(str(BY_NAME["deb7-n2"].path)).prog
    nr_max = prog["root_mem_cgroup"].nodeinfo[0].shrinker_info.map_nr_max
    overlay(prog, nr_max.address_, (0x7FFFFFFF).to_bytes(4, "little"))
    with pytest.raises(CollectError, match="is for 2147483647 ids"):
        shrinker_infos.count(prog, memcgs.walk(prog))


def test_an_array_that_is_too_short_is_no_number(kernel: SyntheticKernel) -> None:
    memcg_list = [memcg(kernel, True, [kernel.compound(4), kernel.slab("kmalloc-64")])]
    with pytest.raises(CollectError) as e:
        shrinker_infos.count(kernel.prog, memcg_list)
    assert e.value.status == "bad_core"


def test_a_kernel_without_the_arrays() -> None:
    """Before v4.19."""
    kernel = SyntheticKernel("struct mem_cgroup_per_node { unsigned long lruvec[20]; };")
    assert shrinker_infos.count(kernel.prog, []) is None
