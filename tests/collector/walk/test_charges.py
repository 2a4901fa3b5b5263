"""Whose the charged objects are, against drgn's slab helpers, one object at a time."""

from __future__ import annotations

import struct

import pytest
from drgn import FaultError, Object, Program, TypeMember, offsetof
from drgn.helpers.linux.mm import virt_to_page
from drgn.helpers.linux.slab import find_slab_cache, for_each_slab_cache, slab_object_info

from pipeline.collector.access import kernel
from pipeline.collector.walk import charges, memcgs, superblocks
from pipeline.collector.walk.memmap import Memmap
from tests.collector.conftest import CORES
from tests.collector.test_damage import overlay, word

EAGER = next(core for core in CORES if core.name == "deb510-n2")
CHILD, CHILD_NODE = 0xFFFFFE1234560000, 0xFFFFFE1234570000
"""Where the test's own slab cache and its kmem_cache_node lie: in no core."""


def scan(prog: Program) -> charges.Charges:
    return charges.scan(prog, superblocks.walk(prog), memcgs.walk(prog))


class OldTypes:
    """v5.8: struct page without obj_cgroups, struct kmem_cache with memcg_params (mm/slab.h), here over kobj.

    struct memcg_cache_params { struct kmem_cache *root_cache; union { ...; struct { struct mem_cgroup *memcg; ...
    """

    def __init__(self, prog: Program) -> None:
        cache, page = prog.type("struct kmem_cache"), prog.type("struct page")
        root_cache = TypeMember(prog.type("struct kmem_cache *"), "root_cache", 0)
        memcg = TypeMember(prog.type("struct mem_cgroup *"), "memcg", 64)
        params = prog.struct_type("memcg_cache_params", 16, [root_cache, memcg])
        self.offset = cache.member("kobj").offset
        members = [*cache.members, TypeMember(params, "memcg_params", 8 * self.offset)]
        self.types = {
            "kmem_cache": prog.struct_type("kmem_cache", cache.size, members),
            "page": prog.struct_type("page", page.size, page.members[:-1]),
        }

    def find(self, prog: Program, kinds: object, name: str, filename: str | None) -> object:
        return self.types.get(name)


def test_a_memcgs_own_caches_before_v5_9() -> None:
    """Every allocated object of a memcg's copy of a cache is charged to it; what a free object holds is not looked at.

    One slab of dentries is given to a copy that the test makes of their cache.
    """
    prog = kernel.open_kernel(str(EAGER.path)).prog
    memcg = next(memcg for memcg in memcgs.walk(prog) if memcg.path.count(b"/") == 1 and memcg.parent)
    cache = find_slab_cache(prog, "dentry")
    size, d_sb = cache.size.value_(), offsetof(prog.type("struct dentry"), "d_sb")
    for _, slab in Memmap(prog).slabs({cache.value_()}):
        slots = [slab.address + i * size for i in range(slab.objects)]
        if slab.vector and all(slab_object_info(prog, slot).allocated for slot in slots):
            break
    page = virt_to_page(prog, slab.address).value_()
    # The second slot is freed, as the last of the slab's free list (freelist_ptr(), mm/slub.c of v5.10), and looks as
    # if it had been a dentry of another superblock: pages that are used again are not cleared.
    free = slots.pop(1)
    wanted = {prog.read_word(slot + d_sb) for slot in slots}
    word(prog, free + d_sb, next(sb.address for sb in superblocks.walk(prog) if sb.address not in wanted))
    at = free + cache.offset.value_()
    word(prog, at, cache.random.value_() ^ int.from_bytes(at.to_bytes(8, "little"), "big"))
    word(prog, page + offsetof(prog.type("struct page"), "freelist"), free)
    counters = page + offsetof(prog.type("struct page"), "counters")
    word(prog, counters, prog.read_word(counters) - 1)  # one less in use
    assert not slab_object_info(prog, free).allocated

    old = OldTypes(prog)
    for other in for_each_slab_cache(prog):
        overlay(prog, other.value_() + old.offset, bytes(16))
    node_offset = cache.type_.type.member("node").offset
    node = cache.node[0].value_()
    nr_slabs = offsetof(prog.type("struct kmem_cache_node"), "nr_slabs")
    own = prog.read(cache, node_offset) + struct.pack("<Q", CHILD_NODE)
    link = offsetof(cache.type_.type, "list")
    first = prog["slab_caches"].next.value_()
    own = own[:link] + struct.pack("<Q", first) + own[link + 8 :]
    own = own[: old.offset] + struct.pack("<QQ", cache.value_(), memcg.address) + own[old.offset + 16 :]
    overlay(prog, CHILD, own.ljust(cache.type_.type.size, b"\0"))
    overlay(prog, CHILD_NODE, prog.read(node, nr_slabs) + struct.pack("<Q", 1))
    word(prog, node + nr_slabs, prog.read_word(node + nr_slabs) - 1)
    word(prog, prog["slab_caches"].address_, CHILD + link)
    word(prog, page + offsetof(prog.type("struct page"), "slab_cache"), CHILD)
    prog.register_type_finder("old", old.find, enable_index=0)

    offset = offsetof(prog.type("struct super_block"), "s_dentry_lru")
    charged = scan(prog).by_list_lru
    assert {lru: {owner.path for owner in owners} for lru, owners in charged.items()} == {
        sb + offset: {memcg.path} for sb in wanted
    }


def test_a_missing_page_of_the_memmap_is_no_lower_number() -> None:
    """The kernel's own count of slabs (kmem_cache_node.nr_slabs) says that some were not seen."""
    opened = kernel.open_kernel(str(EAGER.path))
    prog = opened.prog
    slabs = Memmap(prog).slabs({find_slab_cache(prog, "dentry").value_()})
    places = {virt_to_page(prog, slab.address).value_() & -4096 for _, slab in slabs}
    # The page with the struct page of a filesystem's root is read to find the slab caches.
    roots = [
        Object(prog, "struct dentry *", sb.root) for sb in {sb.fstype: sb for sb in superblocks.walk(prog)}.values()
    ]
    looked_at = [address for root in roots for address in (root.value_(), root.d_inode.value_())]
    page = min(places - {virt_to_page(prog, address).value_() & -4096 for address in looked_at})

    def excluded(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise FaultError("excluded page", address)

    prog.add_memory_segment(page, 4096, excluded)
    with pytest.raises(charges.NotScanned, match=r"the memmap has \d+ of \d+ slabs"):
        scan(prog)


def test_charged_objects_that_are_blank_are_no_objects_of_nobody() -> None:
    """A page of a slab that a dump has as zeros: what it held has owners all the same, in the slab's vector."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    dentries = find_slab_cache(prog, "dentry")
    step, d_sb = dentries.size.value_(), offsetof(prog.type("struct dentry"), "d_sb")
    for _, slab in Memmap(prog).slabs({dentries.value_()}):
        owners = struct.unpack(f"{slab.objects}Q", prog.read(slab.vector, 8 * slab.objects)) if slab.vector else ()
        charged = [slab.address + i * step for i, owner in enumerate(owners) if owner]
        if len(charged) > 1:
            break
    word(prog, charged[0] + d_sb, 0)
    scan(prog)  # one may just have been allocated
    word(prog, charged[1] + d_sb, 0)
    with pytest.raises(charges.NotScanned, match=f"2 charged objects of the slab at 0x{slab.address:x} are blank"):
        scan(prog)


def test_a_page_that_was_a_slab_and_is_free_again_is_none() -> None:
    """Up to v4.17 a page that is freed keeps its slab_cache; what says that it is a slab is PG_slab."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    dentries = find_slab_cache(prog, "dentry").value_()
    before = [slab.address for _, slab in Memmap(prog).slabs({dentries})]
    page = virt_to_page(prog, before[0])
    word(prog, page.value_(), page.flags.value_() & ~(1 << prog["PG_slab"].value_()))
    assert [slab.address for _, slab in Memmap(prog).slabs({dentries})] == before[1:]
    with pytest.raises(charges.NotScanned, match=r"the memmap has \d+ of \d+ slabs"):
        scan(prog)


def test_memory_of_interleaved_nodes_is_read_once() -> None:
    prog = kernel.open_kernel(str(EAGER.path)).prog
    caches = {cache.value_() for cache in for_each_slab_cache(prog)}
    before = list(Memmap(prog).slabs(caches))
    first, second = (prog["node_data"][nid] for nid in range(2))
    word(
        prog, first.node_spanned_pages.address_, second.node_start_pfn.value_() + second.node_spanned_pages.value_() - 1
    )
    word(prog, second.node_start_pfn.address_, first.node_start_pfn.value_())
    assert len(before) > 500
    assert list(Memmap(prog).slabs(caches)) == before


class Hidden:
    """A type finder that hides a member of a struct, as another kernel lacks it."""

    def __init__(self, prog: Program, name: str, member: str) -> None:
        now = prog.type(f"struct {name}")
        self.name = name
        self.type = prog.struct_type(name, now.size, [m for m in now.members if m.name != member])

    def find(self, prog: Program, kinds: object, name: str, filename: str | None) -> object:
        return self.type if name == self.name else None


def test_another_slab_allocator_is_not_read_as_if_it_were_slub() -> None:
    """CONFIG_SLAB (up to v6.7): struct kmem_cache has no oo, and struct page the bit fields of SLUB all the same."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    prog.register_type_finder("slab", Hidden(prog, "kmem_cache", "oo").find, enable_index=0)
    with pytest.raises(charges.NotScanned, match="oo"):
        scan(prog)


def test_extensions_that_cannot_be_are_refused() -> None:
    """struct slab has the distance of its objects' extensions since v7.0."""
    prog = kernel.open_kernel(str(next(core for core in CORES if core.name == "deb7-n2").path)).prog
    dentries = find_slab_cache(prog, "dentry").value_()
    slab = next(slab for _, slab in Memmap(prog).slabs({dentries}) if slab.vector)
    at = virt_to_page(prog, slab.address).value_() + offsetof(prog.type("struct slab"), "stride")
    for stride in (0, 7, 1 << 31):
        overlay(prog, at, struct.pack("<I", stride))
        with pytest.raises(charges.NotScanned, match="extensions"):
            scan(prog)
