"""The cost model, compared with published figures, the kernel's constants and a second implementation."""

from __future__ import annotations

import random

import pytest

from pipeline.collector.model import cost

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
    # 16 + 8 * ids, rounded up to the kmalloc buckets of include/linux/slab.h, and above 8 KiB to a power of two.
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


# Superblocks of a Debian guest before the shape's mounts: 952 superblocks less 930 tmpfs (tests/vmcores/bytedance).
OWN_SUPERBLOCKS = 22


@pytest.mark.parametrize(
    ("step", "published_mib"),
    [("objects", 21957 - 6895), ("transpose", 24464 - 21957), ("xarray", 6895 - 4367), ("all", 24464 - 4367)],
)
def test_published_savings_of_the_series(step: str, published_mib: int) -> None:
    """Muchun Song's series: 10,000 memcgs, 10,000 mounts, 2 nodes; used memory of free(1) in MiB after each patch.

    6a6b7b77cc0f (transpose) saves one of a list_lru's two arrays. 5abc1e37afa0 (objects) saves all objects, whose cost
    is the same as one kmalloc-64 for two nodes or two kmalloc-32. bbca91cca9a9 (xarray) saves the other array. 10,000
    memcgs need 12286 ids. The model adds the superblocks that every machine has and shadow_nodes to the mounts: with
    the mounts alone the last step is off by 1.1 %, with these by 0.9 %. No other term is known: struct list_lru has 48
    bytes before and after bbca91cca9a9, and the additional 8 bytes of 6a6b7b77cc0f vanish in super_block's kmalloc-2k.
    The rest, 31 MiB of the objects and 22 of the xarray, is 0.1 and 0.3 % of the memory in use before the step, which
    was measured on another boot.
    """
    sizes = cost.x86_64(2)
    lists = 2 * (10_000 + OWN_SUPERBLOCKS) + 1
    _, arrays, objects = (lists * part for part in cost.eager_bytes(sizes, 2, 12286))
    model = {"objects": objects, "transpose": arrays / 2, "xarray": arrays / 2, "all": objects + arrays}
    assert model[step] / MIB == pytest.approx(published_mib, rel=0.01)


# Power9 with pages of 64 KiB: kmalloc() has caches up to two pages. L1_CACHE_BYTES, the alignment of list_lru_node, is
# 128.
_PPC64_KMALLOC = tuple(sorted([*((1 << shift, 1 << shift) for shift in range(3, 18)), (96, 96), (192, 192)]))
PPC64_64K = cost.Sizes(
    _PPC64_KMALLOC, 65536, list_lru_node=128, list_lru_one=24, xa_node=584, xa_chunk_shift=6, nodes=2
)


def test_ibm_10k_containers() -> None:
    """LKML 2021-04-05, Power9: 7 mounts for each of 10,000 containers, 2 nodes; the memory that lazy allocation freed.

    The published counts are whole slabs of 64 KiB with 2,048 objects of kmalloc-32: "102.5G". Slab memory fell from
    149G to 45G, used memory from 172G to 69G, in GiB without decimals.
    """
    _, arrays, objects = (140_000 * part for part in cost.eager_bytes(PPC64_64K, 2, 12286))
    assert 3_442_409_472 % (65536 // 32) == 468_992 % (65536 // 32) == 0
    assert objects // 32 == pytest.approx(3_442_409_472 - 468_992, rel=0.001)
    assert round(objects / GIB, 1) == 102.5
    assert objects / GIB == pytest.approx(172 - 69, rel=0.01), "used memory"
    assert objects / GIB == pytest.approx(149 - 45, abs=2), "slab: a difference of two figures rounded to 1G"
    # The patch did not remove the arrays, which are most of the remaining 45G of slab.
    assert arrays / GIB == pytest.approx(34.2, abs=0.05)


@pytest.mark.parametrize("cache_ids", [94, 766, 12286, 24574, 49150])
def test_a_larger_page_moves_arrays_into_slabs_and_changes_no_bytes(cache_ids: int) -> None:
    """kmalloc() caches and page orders are both powers of two. The page size only decides which one has an array."""
    _, *ppc64 = cost.eager_bytes(PPC64_64K, 2, cache_ids)
    _, *x86_64 = cost.eager_bytes(cost.x86_64(2), 2, cache_ids)
    assert ppc64 == x86_64


def test_oracle_uek7_to_u1() -> None:
    """Oracle's blog, 2023-04-19: 400 LXC containers, 82,944 instead of 7,236,608 kmalloc-32 objects, "~227 MB".

    The blog computes its figure from rounded counts, 7.2 million and 83,000.
    """
    object_bytes = cost.x86_64(1).list_lru_one_bytes()
    assert (7_236_608 - 82_944) * object_bytes / 1e6 == pytest.approx(227, rel=0.01)
    assert int((7_200_000 - 83_000) * object_bytes / 1e6) == 227


def test_the_servers_own_figures() -> None:
    """The commit message of 5abc1e37afa0: ~3 MB a list_lru, "~5.6GB". It does not count the arrays."""
    _, arrays, objects = (1904 * part for part in cost.eager_bytes(cost.x86_64(4), 4, 24574))
    assert objects / 1904 / MIB == pytest.approx(3, rel=0.01)
    assert round(objects / GIB, 1) == 5.6
    assert arrays / GIB == pytest.approx(1.86, abs=0.005)


def test_that_server_measured_on_two_kernels() -> None:
    """Debian's 5.10 and 6.1 under QEMU, the same 952 superblocks, 4 nodes, 12,300 memcgs created and 480 kept.

    SUnreclaim is 7,844,196 and 64,300 kB. Without any entry on 6.1 the model is 0.29 % too high. It does not include
    slab packing and the other slab memory in which the kernels differ (3 to 11 MB). The commit message's formula is
    25 % too low.
    """
    saved_bytes = (7_844_196 - 64_300) * 1024
    sizes = cost.x86_64(4)
    eager = 1905 * sum(cost.eager_bytes(sizes, 4, 24574))
    assert eager == 7_990_149_120
    _, _, objects = cost.eager_bytes(sizes, 4, 24574)
    assert 1905 * objects / 32 == pytest.approx(187_260_973, rel=0.0001), "active kmalloc-32 objects in /proc/slabinfo"
    assert eager - 1905 * sum(cost.lazy_bytes(sizes, ())) == pytest.approx(saved_bytes, rel=0.003)
    assert cost.formula_bytes(952, 4, 24574) / saved_bytes == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("nodes_and_bytes", [(1, 64), (2, 64), (4, 128), (8, 256)])
def test_list_lru_memcg_of_v5_18(nodes_and_bytes: tuple[int, int]) -> None:
    # 16 + 24 * nodes is 40, 64, 112, 208
    nodes, size = nodes_and_bytes
    assert cost.x86_64(nodes).list_lru_memcg_bytes() == size


class _Xarray:
    """An xarray that grows as in lib/xarray.c: a root entry, then nodes added at head and tail."""

    def __init__(self, chunk_shift: int) -> None:
        self.chunk_shift = chunk_shift
        self.height = 0
        self.tree: dict[int, object] = {}
        self.has_entries = False

    def store(self, index: int) -> None:
        if index == 0 and not self.has_entries:
            self.has_entries = True
            return
        while index >> self.chunk_shift * self.height:
            # xas_expand(): an empty tree gets the needed height; an existing tree becomes slot 0 of a new head.
            if self.has_entries:
                self.tree = {0: self.tree if self.height else None}
            self.height += 1
        self.has_entries = True
        mask = (1 << self.chunk_shift) - 1
        node = self.tree
        for level in range(self.height - 1, 0, -1):
            node = node.setdefault(index >> self.chunk_shift * level & mask, {})  # type: ignore[assignment]
        node[index & mask] = None

    def nodes(self, tree: dict[int, object] | None = None) -> int:
        if self.height == 0:
            return 0
        tree = self.tree if tree is None else tree
        return 1 + sum(self.nodes(child) for child in tree.values() if isinstance(child, dict))


@pytest.mark.parametrize("chunk_shift", [4, 6])
@pytest.mark.parametrize("seed", range(20))
def test_xarray_nodes_equal_those_of_a_growing_tree(seed: int, chunk_shift: int) -> None:
    rng = random.Random(seed)
    ids = sorted(rng.sample(range(1, 65536), rng.choice([1, 2, 63, 64, 500, 3000])))
    if seed % 2:
        ids = [i % 200 + 1 for i in ids]
    array = _Xarray(chunk_shift)
    for index in ids:
        array.store(index)
    assert cost.xa_node_count(ids, chunk_shift) == array.nodes()


@pytest.mark.parametrize(("ids", "nodes"), [([], 0), ([0], 0), ([63], 1), ([64], 2), ([4095], 2), ([4096], 3)])
def test_xarray_nodes_at_the_edges(ids: list[int], nodes: int) -> None:
    assert cost.xa_node_count(ids, 6) == nodes
