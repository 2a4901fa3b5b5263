"""The bytes of many allocations, read in bulk, on a synthetic kernel with kmalloc() and vmalloc()."""

from __future__ import annotations

import itertools

import pytest

from pipeline.collector.status import CollectError
from pipeline.collector.walk import slab
from tests.collector.made import SyntheticKernel


@pytest.fixture
def kernel() -> SyntheticKernel:
    kernel = SyntheticKernel("")
    for size in (64, 192):
        kernel.cache(f"kmalloc-{size}", size)
    return kernel


def test_allocations_of_every_allocator(kernel: SyntheticKernel) -> None:
    """Objects of slabs, a page, a compound page also by an address in its third page, and a vmalloc()."""
    sizes = {
        kernel.slab("kmalloc-64"): 64,
        kernel.slab("kmalloc-192"): 192,
        kernel.slab("kmalloc-192"): 192,
        kernel.compound(4): 4 * 4096,
        kernel.compound(4) + 2 * 4096: 4 * 4096,
        kernel.vmalloc(5): 5 * 4096,
    }
    assert slab.allocated_bytes(kernel.prog, list(sizes), 64) == sizes


def test_each_vmalloc_is_measured_where_they_differ(kernel: SyntheticKernel) -> None:
    sizes = {kernel.vmalloc(3 if i == 150 else 2): (3 if i == 150 else 2) * 4096 for i in range(151)}
    assert slab.allocated_bytes(kernel.prog, list(sizes), 4097) == sizes


def test_an_allocation_smaller_than_the_request_is_no_number(kernel: SyntheticKernel) -> None:
    addresses = [kernel.slab("kmalloc-192"), kernel.slab("kmalloc-64")]
    with pytest.raises(CollectError, match=f"0x{addresses[1]:x} has 64 bytes, but the kernel requested 65") as e:
        slab.allocated_bytes(kernel.prog, addresses, 65)
    assert e.value.status == "bad_core"


def test_objects_of_one_kind_have_one_size(kernel: SyntheticKernel) -> None:
    addresses = [kernel.slab("kmalloc-64") for _ in range(200)]
    assert slab.uniform_bytes(kernel.prog, addresses, 64) == 64
    with pytest.raises(CollectError, match="have 64 and 192 bytes"):
        slab.uniform_bytes(kernel.prog, [*addresses, kernel.slab("kmalloc-192")], 64)


def test_few_objects_are_measured(kernel: SyntheticKernel) -> None:
    """The first, the last, and some at even distances."""
    for count in (0, 1, 2, 64, 65, 1000, 10_000):
        addresses = list(range(count))
        samples = slab.samples(addresses)
        assert len(samples) <= 66
        assert set(samples) >= {*addresses[:1], *addresses[-1:]}
        assert all(b - a <= max(1, count / 32) for a, b in itertools.pairwise(samples))


def test_bulk_reads(kernel: SyntheticKernel) -> None:
    """2000 objects are 32 slabs, next to one another."""
    addresses = [kernel.slab("kmalloc-64") for _ in range(2000)]
    kernel.reads = 0
    slab.allocated_bytes(kernel.prog, addresses, 64)
    assert kernel.reads < 20
