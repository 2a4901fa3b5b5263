"""The owners of charged objects, compared with drgn's slab helpers, one object at a time."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Mapping

import pytest
from drgn import FaultError, Object, Program, offsetof
from drgn.helpers.linux.mm import page_to_pfn, virt_to_page
from drgn.helpers.linux.slab import find_slab_cache, for_each_slab_cache, slab_object_info

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.walk import charges, layouts, list_lrus, memcgs, pageblocks, superblocks
from pipeline.collector.walk.memmap import Memmap
from tests.collector.conftest import CORES
from tests.collector.made import MemcgCache, free_slot, overlay, word

EAGER = next(core for core in CORES if core.name == "deb510-n2")


def scan(prog: Program, max_bytes: int | None = None) -> charges.Charges:
    return charges.scan(prog, superblocks.walk(prog), memcgs.walk(prog), max_bytes=max_bytes)


def pairs(memcgs_by_list_lru: Mapping[int, set[memcgs.Memcg]]) -> set[tuple[int, int]]:
    """Pairs of a list_lru and a memcg, by their addresses."""
    return {(list_lru, memcg.address) for list_lru, owners in memcgs_by_list_lru.items() for memcg in owners}


@pytest.mark.parametrize("max_bytes", [None, 64 << 20])
def test_a_memcgs_own_caches_before_v5_9(max_bytes: int | None) -> None:
    """Every allocated object of a memcg's copy of a cache is charged to the memcg; free objects are ignored.

    The test moves a slab of dentries to a copy of their cache. The slab's second slot is free, but looks like a dentry
    of another superblock, because the kernel does not clear reused pages.
    """
    prog = kernel.open_kernel(str(EAGER.path)).prog
    memcg = next(memcg for memcg in memcgs.walk(prog) if memcg.path.count(b"/") == 1 and memcg.parent)
    dentries = find_slab_cache(prog, "dentry")
    size, d_sb = dentries.size.value_(), offsetof(prog.type("struct dentry"), "d_sb")
    for _, slab in Memmap(prog).slabs({dentries.value_()}):
        slots = [slab.address + i * size for i in range(slab.objects)]
        if slab.vector and all(slab_object_info(prog, slot).allocated for slot in slots):
            break
    free = slots.pop(1)
    owner_sbs = {prog.read_word(slot + d_sb) for slot in slots}
    word(prog, free + d_sb, next(sb.address for sb in superblocks.walk(prog) if sb.address not in owner_sbs))
    free_slot(prog, dentries, free)
    assert not slab_object_info(prog, free).allocated
    MemcgCache(prog, dentries, memcg.address, slab.address)

    offset = offsetof(prog.type("struct super_block"), "s_dentry_lru")
    owners_by_lru = scan(prog, max_bytes).by_list_lru
    assert {lru: {owner.path for owner in owners} for lru, owners in owners_by_lru.items()} == {
        sb + offset: {memcg.path} for sb in owner_sbs
    }


def test_a_missing_page_of_the_memmap_is_no_lower_number() -> None:
    """The kernel's own count of slabs (kmem_cache_node.nr_slabs) shows that some are missing."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    slabs = Memmap(prog).slabs({find_slab_cache(prog, "dentry").value_()})
    memmap_pages = {virt_to_page(prog, slab.address).value_() & -4096 for _, slab in slabs}
    # The scan needs the struct page of a filesystem's root to find the slab caches, so these pages stay.
    roots = [
        Object(prog, "struct dentry *", sb.root) for sb in {sb.fstype: sb for sb in superblocks.walk(prog)}.values()
    ]
    addresses = [address for root in roots for address in (root.value_(), root.d_inode.value_())]
    page = min(memmap_pages - {virt_to_page(prog, address).value_() & -4096 for address in addresses})

    def raise_fault(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise FaultError("excluded page", address)

    prog.add_memory_segment(page, 4096, raise_fault)
    with pytest.raises(charges.NotScanned, match=r"the memmap has \d+ of \d+ slabs"):
        scan(prog)


def test_charged_objects_that_are_blank_are_no_objects_of_nobody() -> None:
    """If a slab's page is zero in a dump, its objects still have owners in the slab's vector."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    dentries = find_slab_cache(prog, "dentry")
    step, d_sb = dentries.size.value_(), offsetof(prog.type("struct dentry"), "d_sb")
    for _, slab in Memmap(prog).slabs({dentries.value_()}):
        owners = struct.unpack(f"{slab.objects}Q", prog.read(slab.vector, 8 * slab.objects)) if slab.vector else ()
        charged_objects = [slab.address + i * step for i, owner in enumerate(owners) if owner]
        if len(charged_objects) > 1:
            break
    word(prog, charged_objects[0] + d_sb, 0)
    scan(prog)  # accepted: an object may have just been allocated
    word(prog, charged_objects[1] + d_sb, 0)
    with pytest.raises(charges.NotScanned, match=f"2 charged objects of the slab at 0x{slab.address:x} have no"):
        scan(prog)


def test_a_page_that_was_a_slab_and_is_free_again_is_none() -> None:
    """Up to v4.17 a freed page keeps its slab_cache; only PG_slab shows that a page is a slab."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    dentries = find_slab_cache(prog, "dentry").value_()
    addresses = [slab.address for _, slab in Memmap(prog).slabs({dentries})]
    page = virt_to_page(prog, addresses[0])
    word(prog, page.value_(), page.flags.value_() & ~(1 << prog["PG_slab"].value_()))
    assert [slab.address for _, slab in Memmap(prog).slabs({dentries})] == addresses[1:]
    with pytest.raises(charges.NotScanned, match=r"the memmap has \d+ of \d+ slabs"):
        scan(prog)


def test_memory_of_interleaved_nodes_is_read_once() -> None:
    prog = kernel.open_kernel(str(EAGER.path)).prog
    caches = {cache.value_() for cache in for_each_slab_cache(prog)}
    slabs = list(Memmap(prog).slabs(caches))
    first, second = (prog["node_data"][nid] for nid in range(2))
    word(
        prog, first.node_spanned_pages.address_, second.node_start_pfn.value_() + second.node_spanned_pages.value_() - 1
    )
    word(prog, second.node_start_pfn.address_, first.node_start_pfn.value_())
    assert len(slabs) > 500
    assert list(Memmap(prog).slabs(caches)) == slabs


class MemberHider:
    """A type finder that hides a member of a struct, as in a kernel without it."""

    def __init__(self, prog: Program, name: str, member: str) -> None:
        core_type = prog.type(f"struct {name}")
        self.name = name
        self.type = prog.struct_type(name, core_type.size, [m for m in core_type.members if m.name != member])

    def find(self, prog: Program, kinds: object, name: str, filename: str | None) -> object:
        return self.type if name == self.name else None


def test_another_slab_allocator_is_not_read_as_if_it_were_slub() -> None:
    """With CONFIG_SLAB (up to v6.7) struct kmem_cache has no oo, but struct page has the bit fields of SLUB."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    prog.register_type_finder("slab", MemberHider(prog, "kmem_cache", "oo").find, enable_index=0)
    with pytest.raises(charges.NotScanned, match="oo"):
        scan(prog)


def test_extensions_that_cannot_be_are_refused() -> None:
    """Since v7.0 struct slab has the distance between its objects' extensions."""
    prog = kernel.open_kernel(str(next(core for core in CORES if core.name == "deb7-n2").path)).prog
    dentries = find_slab_cache(prog, "dentry").value_()
    slab = next(slab for _, slab in Memmap(prog).slabs({dentries}) if slab.vector)
    stride_address = virt_to_page(prog, slab.address).value_() + offsetof(prog.type("struct slab"), "stride")
    for stride in (0, 7, 1 << 31):
        overlay(prog, stride_address, struct.pack("<I", stride))
        with pytest.raises(charges.NotScanned, match="extensions"):
            scan(prog)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    whole = scan(kernel.open_kernel(str(EAGER.path)).prog)
    limited = scan(kernel.open_kernel(str(EAGER.path)).prog, max_bytes=64 << 20)
    assert pairs(limited.by_list_lru) == pairs(whole.by_list_lru)
    assert (limited.error_pairs, limited.imputed_by_list_lru) == (None, {})


def test_movable_memory_is_not_read_once_all_slabs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the ranges with a slab of any cache are fixed; on a kernel some of those slabs lie in movable pageblocks."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    whole = scan(prog)
    slabs = [slab for _, slab in Memmap(prog).slabs({cache.value_() for cache in for_each_slab_cache(prog)})]
    blocks = {page_to_pfn(virt_to_page(prog, slab.address)).value_() // 512 for slab in slabs}
    fixed, movable = (array("Q", [512 * block for block in starts]) for starts in (blocks, set(range(128)) - blocks))
    monkeypatch.setattr(pageblocks, "ranges", lambda *_: pageblocks.Ranges(fixed, movable, 512))
    limited = scan(prog, max_bytes=64 << 20)
    assert pairs(limited.by_list_lru) == pairs(whole.by_list_lru)
    assert limited.error_pairs is None
    assert limited.read_bytes < whole.read_bytes


def test_the_error_of_a_sample_does_not_leave_the_certain_bounds() -> None:
    """By hand: 140 is between 100, what the sample shows, and 300, which leaves at most 160."""
    rows = [
        {"lazy_charged_bytes": 30, "lazy_bytes": 60, "lazy_high_bytes": 100},
        {"lazy_charged_bytes": 70, "lazy_bytes": 80, "lazy_high_bytes": 200},
    ]
    assert [snapshot._error_bytes(error_bytes, rows) for error_bytes in (0.5, 159.5, 160.5)] == [1, 160, 160]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_a_sample_of_slabs_has_the_whole_figure_in_its_interval(
    fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lazy_bytes of samples, in several random orders, against that of all slabs."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    sbs, cgroups = superblocks.walk(prog), memcgs.walk(prog)
    whole = charges.scan(prog, sbs, cgroups)
    lrus = list_lrus.walk(prog, layouts.detect(prog), sbs, cgroups, whole.by_list_lru).list_lrus

    def lazy_bytes(found: charges.Charges) -> tuple[int, int]:
        estimator = snapshot.lazy_estimate(prog, sbs, cgroups, found, "5.18")
        return sum(estimator.columns(lru)["lazy_bytes"] for lru in lrus), estimator.max_pair_bytes()

    whole_bytes, _ = lazy_bytes(whole)
    # The core is small: only the slabs are sampled, a few at a time.
    memmap = Memmap(prog)
    list(memmap.slabs(()))
    spans, generator = charges._LimitedScan.spans, random.Random
    monkeypatch.setattr(charges._LimitedScan, "spans", lambda scan, _, counts: spans(scan, 1 << 40, counts))
    monkeypatch.setattr(charges, "_SLABS_PER_TURN", 2)
    limit = memmap.read_bytes + int(fraction * (whole.read_bytes - memmap.read_bytes))
    for seed in range(5):
        monkeypatch.setattr(random, "Random", lambda _, seed=seed: generator(seed))
        sample = charges.scan(prog, sbs, cgroups, max_bytes=limit)
        assert pairs(sample.by_list_lru) < pairs(whole.by_list_lru)
        assert sample.error_pairs
        assert sample.read_bytes <= limit
        sample_bytes, pair_bytes = lazy_bytes(sample)
        assert abs(sample_bytes - whole_bytes) <= sample.error_pairs * pair_bytes


@pytest.mark.parametrize("max_bytes", [1 << 19, 1 << 20, 1 << 21])
def test_ranges_of_the_memmap_are_sampled_as_a_whole(max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a part of the memmap and of its slabs, the interval has the number of pairs, but for one seed."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    whole = pairs(scan(prog).by_list_lru)
    generator = random.Random
    covered = 0
    for seed in range(10):
        monkeypatch.setattr(random, "Random", lambda _, seed=seed: generator(seed))
        sample = scan(prog, max_bytes)
        unseen = whole - pairs(sample.by_list_lru)
        assert unseen
        assert sample.error_pairs
        covered += abs(len(unseen) - len(pairs(sample.imputed_by_list_lru))) <= sample.error_pairs
    assert covered >= 9


def test_a_memmap_that_cannot_be_read_has_no_figure() -> None:
    """The nodes are where no memory is, so that the whole memmap is read and no slab found."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    for nid in range(2):
        word(prog, prog["node_data"][nid].node_start_pfn.address_, 1 << 30)
    with pytest.raises(charges.NotScanned, match="0 of"):
        scan(prog, 64 << 20)


def test_a_slab_that_was_freed_during_the_scan_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first charged object of a vector gets an owner that is no address, as on a list of free objects."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    whole = pairs(scan(prog).by_list_lru)
    caches = {find_slab_cache(prog, "dentry").value_()}
    memmap = Memmap(prog)
    slab = next(slab for _, slab in memmap.slabs(caches) if slab.vector)
    slot = next(slot for slot in range(slab.objects) if prog.read_u64(slab.vector + slot * slab.stride))
    word(prog, slab.vector + slot * slab.stride, 0x1234_5678_9ABC_DEF0)
    with pytest.raises(charges.NotScanned):
        scan(prog)
    monkeypatch.setattr(charges, "is_running", lambda _: True)
    found = pairs(scan(prog).by_list_lru)
    assert len(whole) - 1 <= len(found)
    assert found <= whole
