"""The cost model against published figures, the kernel's own constants and a second implementation."""

from __future__ import annotations

import random

import pytest

from pipeline.collector import cost

MIB = 1 << 20
GIB = 1 << 30


def test_the_commit_message_of_5abc1e37afa0() -> None:
    sizes = cost.x86_64(nodes=4)
    _, _, objects = cost.eager_bytes(sizes, nodes=4, cache_ids=24574)
    assert objects == 3_145_472, "bytes a list_lru: 24574 ids, 4 nodes, kmalloc-32"
    assert cost.formula_bytes(952, 4, 24574) == 5_988_978_688, "about 5.6 GB on the server"


def test_a_list_of_that_server_by_hand() -> None:
    # mm/list_lru.c of v5.10: kcalloc(4, 64); 4 * kvmalloc(16 + 8 * 24574 = 196,608 -> 2^6 pages); 4 * 24574 * 32
    assert cost.eager_bytes(cost.x86_64(4), 4, 24574) == (256, 4 * 262_144, 4 * 24574 * 32)


@pytest.mark.parametrize(
    ("cache_ids", "array_bytes"),
    # 16 + 8 * ids in the kmalloc buckets of include/linux/slab.h, above 8 KiB in pages by powers of two
    [
        *((4, 64), (10, 96), (22, 192), (46, 512), (94, 1024), (190, 2048), (382, 4096), (766, 8192)),
        *((1534, 16384), (3070, 32768), (6142, 65536), (12286, 131_072), (24574, 262_144), (65535, MIB)),
    ],
)
def test_pointer_arrays_are_rounded_as_kmalloc_does(cache_ids: int, array_bytes: int) -> None:
    assert cost.x86_64(1).pointer_array_bytes(cache_ids) == array_bytes


def test_memcg_nr_cache_ids_grows_as_memcg_alloc_cache_id_makes_it() -> None:
    series = [0]
    while series[-1] < 65535:
        series.append(cost.next_cache_ids(series[-1]))
    assert series[1:] == [4, 10, 22, 46, 94, 190, 382, 766, 1534, 3070, 6142, 12286, 24574, 49150, 65535]


def test_published_savings_of_the_series() -> None:
    """Muchun Song's ladder for 10,000 containers: 2 nodes, 12286 ids, 10,000 superblocks (MB of /proc/meminfo)."""
    sizes = cost.x86_64(2)
    _, arrays, objects = (20_000 * part for part in cost.eager_bytes(sizes, 2, 12286))
    assert objects / MIB == pytest.approx(21957 - 6895, rel=0.01), "5abc1e37afa0 alone"
    assert arrays / 2 / MIB == pytest.approx(24464 - 21957, rel=0.01), "6a6b7b77cc0f: one array instead of two"
    assert arrays / 2 / MIB == pytest.approx(6895 - 4367, rel=0.02), "bbca91cca9a9: no array at all"


def test_ibm_10k_containers() -> None:
    """LKML 2021-04-05: 3,442,409,472 objects of kmalloc-32, 102.5 GiB, with 70,000 superblocks on two nodes."""
    _, _, objects = cost.eager_bytes(cost.x86_64(2), 2, 12286)
    assert 140_000 * objects / 32 == pytest.approx(3_442_409_472, rel=0.01)
    assert 140_000 * objects / GIB == pytest.approx(102.5, rel=0.01)


@pytest.mark.parametrize("nodes_and_bytes", [(1, 64), (2, 64), (4, 128), (8, 256)])
def test_list_lru_memcg_of_v5_18(nodes_and_bytes: tuple[int, int]) -> None:
    # 16 + 24 * nodes is 40, 64, 112, 208
    nodes, size = nodes_and_bytes
    assert cost.x86_64(nodes).list_lru_memcg_bytes() == size


class _Xarray:
    """An xarray that grows as lib/xarray.c's does: a root entry, then nodes of 64 slots added at head and tail."""

    def __init__(self) -> None:
        self.height = 0
        self.tree: dict[int, object] = {}
        self.used = False

    def store(self, index: int) -> None:
        if index == 0 and not self.used:
            self.used = True
            return
        while index >= 64**self.height:
            # xas_expand(): an empty tree starts high enough; what was there becomes slot 0 of a new head.
            if self.used:
                self.tree = {0: self.tree if self.height else None}
            self.height += 1
        self.used = True
        node = self.tree
        for level in range(self.height - 1, 0, -1):
            node = node.setdefault(index >> 6 * level & 63, {})  # type: ignore[assignment]
        node[index & 63] = None

    def nodes(self, tree: dict[int, object] | None = None) -> int:
        if self.height == 0:
            return 0
        tree = self.tree if tree is None else tree
        return 1 + sum(self.nodes(child) for child in tree.values() if isinstance(child, dict))


@pytest.mark.parametrize("seed", range(20))
def test_xarray_nodes_equal_those_of_a_growing_tree(seed: int) -> None:
    chance = random.Random(seed)
    ids = sorted(chance.sample(range(1, 65536), chance.choice([1, 2, 63, 64, 500, 3000])))
    if seed % 2:
        ids = [i % 200 + 1 for i in ids]
    array = _Xarray()
    for index in ids:
        array.store(index)
    assert cost.xa_nodes(ids) == array.nodes()


@pytest.mark.parametrize(("ids", "nodes"), [([], 0), ([0], 0), ([63], 1), ([64], 2), ([4095], 2), ([4096], 3)])
def test_xarray_nodes_at_the_edges(ids: list[int], nodes: int) -> None:
    assert cost.xa_nodes(ids) == nodes
