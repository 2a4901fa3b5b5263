"""The bytes of many allocations, read in bulk, on a synthetic kernel with kmalloc() and vmalloc()."""

from __future__ import annotations

import itertools
import struct

import pytest
from drgn import Object
from drgn.helpers.linux.slab import slab_object_info

from pipeline.collector.status import CollectError
from pipeline.collector.walk import slab, superblocks
from tests.collector.conftest import Core
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
    assert slab.uniform_bytes(kernel.prog, [(addresses, 64), ([], 64)]) == [64, 0]
    with pytest.raises(CollectError, match="have 64 and 192 bytes"):
        slab.uniform_bytes(kernel.prog, [([*addresses, kernel.slab("kmalloc-192")], 64)])


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


def test_slots_are_those_that_drgn_finds(core: Core) -> None:
    """A variable of the kernel and an address of vmalloc() are in none."""
    prog = core.kernel.prog
    roots = list({sb.fstype: sb.root for sb in superblocks.walk(prog) if sb.root}.values())
    addresses = [*roots, *(Object(prog, "struct dentry *", root).d_inode.value_() for root in roots)]
    expected = {}
    for address in addresses:
        info = slab_object_info(prog, address)
        if info:
            pad = getattr(info.slab_cache, "red_left_pad", 0)
            expected[address] = info.slab_cache.value_(), address - info.address + int(pad)
    outside = [prog["super_blocks"].address_, prog["vmemmap"].value_()]
    assert slab.find_slots(prog, [*addresses, *outside]) == expected
    assert len(expected) > 10


def test_a_slab_cache_without_a_size_has_no_slots(kernel: SyntheticKernel) -> None:
    address = kernel.slab("kmalloc-64")
    kernel.put(kernel.caches["kmalloc-64"][0], "struct kmem_cache", size=0)
    with pytest.raises(CollectError, match=f"the object at 0x{address:x} has a size of 0") as e:
        slab.find_slots(kernel.prog, [address])
    assert e.value.status == "bad_core"


def put_caches(kernel: SyntheticKernel, count: int) -> None:
    """Make kmalloc-64 and many copies of a memcg's slab cache the kernel's list."""
    base, bytes_each = 0xFFFF888008000000, 64
    name = kernel.write(kernel.compound(1), b"dentry(7:box)\0")
    head = kernel.variable("slab_caches", "struct list_head")
    links = [base + bytes_each * i + 24 for i in range(count)]
    last = kernel.caches["kmalloc-64"][0] + 24
    data = b"".join(
        struct.pack("<IIQQQ32x", 192, 192, 0, name, following) for following in itertools.chain(links[1:], [last])
    )
    data += bytes(-len(data) % 4096)
    for start in range(0, len(data), 4096):
        kernel.memory[base + start >> 12] = bytearray(data[start : start + 4096])
    kernel.words(head, links[0])
    kernel.words(last, head)


def test_7000_memcgs_have_more_than_100_000_slab_caches(kernel: SyntheticKernel) -> None:
    """The list of a core is walked once: later, neighbouring slab caches are read together."""
    put_caches(kernel, 105_000)
    assert slab.kmalloc_sizes(kernel.prog) == ((64, 64),)
    kernel.reads = 0
    assert sum(fields.size == 192 for _, fields in slab.caches(kernel.prog, size="size")) == 105_000
    assert kernel.reads < 100


def test_the_list_of_a_running_kernel_is_walked_each_time(
    kernel: SyntheticKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slab, "is_running", lambda prog: True)
    for count in (2, 1):
        put_caches(kernel, count)
        assert len(list(slab.caches(kernel.prog))) == count + 1
