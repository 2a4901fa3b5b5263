"""Free slots of slabs with structs of memcgs: of real kernels by their slabinfo, of slabs laid out by hand."""

from __future__ import annotations

import pytest
from drgn.helpers.linux.slab import find_containing_slab_cache

from pipeline.collector.status import CollectError
from pipeline.collector.walk import memcg_slabs, memcg_structs, memcgs
from tests.collector.conftest import Core, with_cores
from tests.collector.made import DIRECT_MAP, PG_HEAD, PG_SLAB, VMEMMAP, SyntheticKernel
from tests.collector.walk.test_memcg_caches import CACHE, PARAMS, STRUCTS

SIZE, SLOTS = 1024, 16


def slabinfo_free_bytes(core: Core, caches: set[str]) -> int:
    """The free slots of slab caches, of which slabinfo takes those on CPUs for active."""
    rows = (line.split() for line in core.truth("slabinfo").splitlines()[2:])
    return sum((int(total) - int(active)) * int(size) for name, active, total, size, *_ in rows if name in caches)


@with_cores(lambda core: core.is_eager and core.name != "deb510-growing")
def test_few_free_slots_of_these_caches_are_in_other_slabs(core: Core) -> None:
    """Where memcgs were removed, as on all but one."""
    prog = core.kernel.prog
    addresses = memcg_structs.count(prog, memcgs.walk(prog)).addresses
    caches = {find_containing_slab_cache(prog, address).name.string_().decode() for address in addresses}
    all_bytes = slabinfo_free_bytes(core, caches)
    assert 0.85 * all_bytes < memcg_slabs.free_bytes(prog, addresses) < 1.02 * all_bytes


class SlabKernel(SyntheticKernel):
    """A kernel whose slabs have four pages."""

    def __init__(self) -> None:
        super().__init__(STRUCTS + CACHE.format(params=PARAMS["f0a3a24b532d"], random=""))
        self.kmalloc = self.cache("kmalloc-1k", SIZE)
        self.put(self.kmalloc, "struct kmem_cache", oo__x=2 << 16 | SLOTS)

    def filled(self, objects: int, cache: int, slots: int = SLOTS) -> int:
        """Allocate a slab with a number of objects, and return the address of its first slot."""
        address = self.compound(4)
        page = VMEMMAP + (address - DIRECT_MAP) // 4096 * 64
        self.put(page, "struct page", flags=1 << PG_SLAB | 1 << PG_HEAD, slab_cache=cache)
        self.put(page, "struct page", counters=objects | slots << 16)
        return address


def test_free_slots_of_each_slab_are_counted_once() -> None:
    kernel = SlabKernel()
    first, second, full = (kernel.filled(objects, kernel.kmalloc) for objects in (3, 15, 16))
    kernel.filled(1, kernel.kmalloc)  # without a struct of a memcg
    addresses = [first, first + 2 * SIZE, first + 15 * SIZE, second + 5 * SIZE, full + 12 * SIZE]
    assert memcg_slabs.free_bytes(kernel.prog, addresses) == (13 + 1) * SIZE


def test_large_arrays_are_not_in_slabs() -> None:
    kernel = SlabKernel()
    assert memcg_slabs.free_bytes(kernel.prog, [kernel.compound(8), kernel.vmalloc(5)]) == 0
    assert memcg_slabs.free_bytes(kernel.prog, []) == 0


def test_an_object_of_kfence_has_no_free_slots() -> None:
    kernel = SlabKernel()
    assert memcg_slabs.free_bytes(kernel.prog, [kernel.filled(0, kernel.kmalloc, slots=1)]) == 0


def test_slabs_of_memcgs_own_caches_are_not_counted_twice() -> None:
    kernel = SlabKernel()
    child = kernel.cache("kmalloc-1k(7:c1)", SIZE)
    kernel.put(child, "struct kmem_cache", memcg_params__root_cache=kernel.kmalloc)
    addresses = [kernel.filled(1, child), kernel.filled(14, kernel.kmalloc)]
    assert memcg_slabs.free_bytes(kernel.prog, addresses) == 2 * SIZE


def test_more_objects_than_slots_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SlabKernel()
    addresses = [kernel.filled(17, kernel.kmalloc), kernel.filled(14, kernel.kmalloc)]
    with pytest.raises(CollectError, match="has more objects than slots"):
        memcg_slabs.free_bytes(kernel.prog, addresses)
    monkeypatch.setattr(memcg_slabs, "is_running", lambda prog: True)
    assert memcg_slabs.free_bytes(kernel.prog, addresses) == 2 * SIZE


def test_a_slab_of_more_slots_than_its_cache_lays_out_is_broken() -> None:
    kernel = SlabKernel()
    with pytest.raises(CollectError, match="has 17 slots"):
        memcg_slabs.free_bytes(kernel.prog, [kernel.filled(1, kernel.kmalloc, slots=17)])
