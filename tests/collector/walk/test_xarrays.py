"""Xarrays whose nodes have 64 slots, or with CONFIG_BASE_SMALL 16."""

from __future__ import annotations

import pytest

from pipeline.collector.model import cost
from pipeline.collector.walk import xarrays
from tests.collector.made import SyntheticKernel

XARRAY = 0xFFFF888000001000


@pytest.mark.parametrize("chunk_shift", [4, 6])
@pytest.mark.parametrize("ids", [(0,), (15,), (16,), (3, 70, 4095), (1, 4096, 65535)])
def test_entries_and_nodes_are_those_of_the_kernels_node_size(chunk_shift: int, ids: tuple[int, ...]) -> None:
    kernel = SyntheticKernel(
        f"""
        struct xa_node {{ unsigned char shift; unsigned char offset; unsigned char count; unsigned char nr_values;
            struct xa_node *parent; struct xarray *array; struct list_head private_list;
            void *slots[{1 << chunk_shift}]; unsigned long tags[3]; }};""",
        4096,
        "little",
    )
    kernel.cache("radix_tree_node", 584)
    first = kernel.prog.type("struct xa_node").member("slots").bit_offset // 8

    def tree(shift: int, ids: tuple[int, ...]) -> int:
        """The entry for a subtree: the low bits of a node's are 10, an object's are 0."""
        if shift < 0:
            return 0xFFFF888000000000 + 8 * (1 << 16 | ids[0])
        address = kernel.slab("radix_tree_node")
        kernel.put(address, "struct xa_node", shift=shift, array=XARRAY)
        for slot in {i >> shift & (1 << chunk_shift) - 1 for i in ids}:
            below = tuple(i for i in ids if i >> shift & (1 << chunk_shift) - 1 == slot)
            kernel.words(address + first + 8 * slot, tree(shift - chunk_shift, below))
        return address + 2

    root_shift = -chunk_shift
    while max(ids) >> root_shift + chunk_shift:
        root_shift += chunk_shift
    assert xarrays.chunk_shift(kernel.prog) == chunk_shift
    entries, node_counts = xarrays.Xarrays(kernel.prog).read({XARRAY: tree(root_shift, ids)})
    assert sorted(index for index, _ in entries[XARRAY]) == list(ids)
    assert node_counts[XARRAY] == cost.xa_node_count(ids, chunk_shift)
