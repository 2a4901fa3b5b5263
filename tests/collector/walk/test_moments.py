"""Cores of a kernel in the middle of a change: bundled cores whose memory is set to what it is at that moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from drgn import FaultError, Object, Program, offsetof, sizeof
from drgn.helpers.linux.slab import find_slab_cache, for_each_slab_cache, slab_object_info

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import charges, superblocks
from tests.collector.conftest import CORES, Core
from tests.collector.made import free_slot, overlay, word
from tests.collector.walk.machine import Machine

BY_NAME = {core.name: core for core in CORES}
EAGER, LAZY = BY_NAME["deb510-n2"], BY_NAME["deb61-n2"]
CSS_DYING = 1 << 4
SB_KERNMOUNT, SB_BORN, SB_NOUSER = 1 << 22, 1 << 29, 1 << 31


def audit(core: Core, change: Callable[[Program], object]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table after a change of the core's memory."""
    opened_kernel = kernel.open_kernel(str(core.path))
    change(opened_kernel.prog)
    tables = snapshot.take(opened_kernel).tables
    return {table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}


def put_int(value: Object, number: int) -> None:
    overlay(value.prog_, value.address_, (number & 0xFFFFFFFF).to_bytes(4, "little"))


def go_offline(prog: Program, memcg: dict[str, Any], parent_id: int) -> None:
    """Change a memcg as kill_css() and then memcg_offline_kmem() do: CSS_ONLINE is still set."""
    struct = Object(prog, "struct mem_cgroup", address=memcg["address"])
    put_int(struct.css.flags, struct.css.flags.value_() | CSS_DYING)
    put_int(struct.kmemcg_id, parent_id)


def empty_missing_lists(prog: Program, core: Core) -> None:
    """Let pages of the direct map that the small core lacks, which have lists without items, be read as zeros."""
    small = kernel.open_kernel(str(core.path)).prog

    def read_page(address: int, count: int) -> bytes:
        try:
            return small.read(address, count)
        except FaultError:
            return bytes(count)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        ends = [*range(address + 4096 & -4096, address + count, 4096), address + count]
        starts = [address, *ends[:-1]]
        return b"".join(read_page(start, end - start) for start, end in zip(starts, ends, strict=True))

    prog.add_memory_segment(prog["page_offset_base"].value_(), 1 << 40, read)


def items_of_memcgs(core: Core) -> dict[str, int]:
    """The items of each online memcg by its path, as the reference counts them."""
    items_by_id: Counter[int] = Counter()
    for lru in core.reference["list_lrus"]:
        items_by_id.update({int(cache_id): items for cache_id, items in lru["memcg_items"].items()})
    return {memcg["path"]: items_by_id[memcg["cache_id"]] for memcg in core.reference["memcgs"] if memcg["online"]}


@pytest.mark.parametrize("core", [EAGER, LAZY], ids=lambda core: core.name)
def test_a_memcg_whose_lists_are_being_moved_to_its_parent_is_dying(core: Core) -> None:
    """Below the root kmemcg_id is then -1. Items that are still on the memcg's own lists count for no memcg."""
    items = items_of_memcgs(core)
    memcg = max(core.reference["memcgs"], key=lambda memcg: memcg["path"] != "/" and items.get(memcg["path"], 0))
    assert items.pop(memcg["path"]) > 0

    def change(prog: Program) -> None:
        empty_missing_lists(prog, core)
        go_offline(prog, memcg, -1)

    tables = audit(core, change)

    (target,), rows = tables["targets"], {row["path"]: row for row in tables["memcgs"]}
    assert (rows[memcg["path"]]["state"], rows[memcg["path"]]["cache_id"]) == ("dying", None)
    assert {path: rows[path]["items"] for path in items} == items
    assert target["online_memcgs"] == len(items) - 1  # without the root
    assert target["lazy_basis"] == core.target["lazy_basis"]
    assert target["charged_scan_bytes"] is not None
    for column in ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes"):
        assert [lru[column] for lru in tables["list_lrus"]] == [lru[column] for lru in core.rows("list_lrus")]
    if core.is_eager:
        assert "on the lists of online memcgs, nr_items counts" in target["notes"]


@pytest.mark.parametrize("core", [BY_NAME["deb510-n1"], BY_NAME["deb612-n4"]], ids=lambda core: core.name)
def test_items_are_counted_once_while_two_memcgs_have_one_id(core: Core) -> None:
    """A memcg has its parent's kmemcg_id and has moved all items: here the parent takes the id with the items."""
    items = items_of_memcgs(core)
    by_path = {memcg["path"]: memcg for memcg in core.reference["memcgs"]}
    memcg = max(core.reference["memcgs"], key=lambda memcg: memcg["path"].count("/") * items.get(memcg["path"], 0))
    parent = by_path[memcg["path"].rpartition("/")[0]]
    moved_items = items.pop(memcg["path"])
    assert moved_items > items[parent["path"]] == 0
    items[parent["path"]] = moved_items

    def move(prog: Program) -> None:
        put_int(Object(prog, "struct mem_cgroup", address=parent["address"]).kmemcg_id, memcg["cache_id"])
        go_offline(prog, memcg, memcg["cache_id"])

    tables = audit(core, move)

    rows = {row["path"]: row for row in tables["memcgs"]}
    assert {path: rows[path]["items"] for path in items} == items
    assert rows[memcg["path"]]["items"] == 0
    assert [lru["memcg_items"] for lru in tables["list_lrus"]] == [lru["memcg_items"] for lru in core.rows("list_lrus")]
    assert tables["targets"][0]["consistency"] == "exact"


def link(prog: Program, superblock: int, name: str) -> Object:
    """The list_head of a superblock's list_lru on the kernel's list of list_lrus."""
    return Object(prog, "struct super_block", address=superblock).member_(f"s_{name}_lru").list


def list_del(prog: Program, superblock: int, name: str) -> None:
    links = link(prog, superblock, name)
    word(prog, links.prev.next.address_, links.next.value_())
    word(prog, links.next.prev.address_, links.prev.value_())
    word(prog, links.next.address_, 0xDEAD000000000100)


def superblock_of(core: Core, mountpoint: str) -> int:
    return next(sb["address"] for sb in core.rows("superblocks") if sb["mountpoint"] == mountpoint)


@pytest.mark.parametrize("core", [EAGER, LAZY], ids=lambda core: core.name)
@pytest.mark.parametrize("name", ["dentry", "inode"])
def test_a_list_lru_that_an_unmount_is_freeing_holds_nothing(core: Core, name: str) -> None:
    """list_lru_destroy() frees what a list_lru points to before it clears `node`, of the dentries first."""
    superblock = superblock_of(core, "/m/tmpfs7")

    def unmount(prog: Program) -> None:
        list_del(prog, superblock, name)
        if name == "inode":
            list_del(prog, superblock, "dentry")
            word(prog, Object(prog, "struct super_block", address=superblock).s_dentry_lru.node.address_, 0)

    tables = audit(core, unmount)

    assert "list_lrus that an unmount was freeing, counted as empty: 1" in tables["targets"][0]["notes"]
    destroyed = {"dentry"} if name == "dentry" else {"dentry", "inode"}
    normal_rows = {row["address"]: row for row in core.rows("list_lrus")}
    for row in tables["list_lrus"]:
        columns = ("list_lru_one_objects", "list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes")
        sizes, normal_sizes = ([lru[column] for column in columns] for lru in (row, normal_rows[row["address"]]))
        is_destroyed = row["superblock"] == superblock and row["name"] in destroyed
        assert sizes == ([0] * 4 if is_destroyed else normal_sizes)


def test_superblocks_that_are_missing_on_the_list_of_list_lrus_give_no_numbers() -> None:
    """The end of the list is cut off: those behind it are not all being unmounted."""

    def cut(prog: Program) -> None:
        links = link(prog, EAGER.rows("superblocks")[20]["address"], "inode")
        word(prog, links.next.address_, prog["list_lrus"].address_)

    with pytest.raises(CollectError, match="both list_lrus of a superblock are missing") as error_info:
        audit(EAGER, cut)
    assert error_info.value.status == "bad_core"


def test_a_list_lru_of_a_superblock_that_is_being_made_is_counted() -> None:
    """alloc_super() makes the list_lrus before sget() puts the superblock on its list: a slab object has them."""
    superblock = superblock_of(EAGER, "/m/tmpfs7")

    def take_off(prog: Program) -> None:
        links = Object(prog, "struct super_block", address=superblock).s_list
        word(prog, links.prev.next.address_, links.next.value_())
        word(prog, links.next.prev.address_, links.prev.value_())

    tables = audit(EAGER, take_off)
    assert len(tables["superblocks"]) == EAGER.target["superblocks"] - 1
    prog = EAGER.kernel.prog
    cache = slab_object_info(prog, superblock).slab_cache.name.string_().decode()
    offsets = [offsetof(prog.type("struct super_block"), member) for member in superblocks.LRUS]
    rows = {row["address"]: row for row in tables["list_lrus"]}
    for offset in offsets:
        assert (rows[superblock + offset]["owner"], rows[superblock + offset]["name"]) == ("slab", f"{cache}+{offset}")
    for normal_row in EAGER.rows("list_lrus"):
        for column in ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes"):
            assert rows[normal_row["address"]][column] == normal_row[column]


def test_a_superblock_without_a_root_is_counted() -> None:
    """Between sget() and fill_super(), and after shrink_dcache_for_umount(), s_root is NULL."""
    superblock = superblock_of(EAGER, "/m/tmpfs7")
    tables = audit(
        EAGER, lambda prog: word(prog, Object(prog, "struct super_block", address=superblock).s_root.address_, 0)
    )
    for table in ("superblocks", "list_lrus", "memcgs"):
        assert tables[table] == EAGER.rows(table)
    assert tables["targets"][0]["lazy_basis"] == "charged"


@pytest.mark.parametrize(
    ("cleared_flags", "cleared_member", "state"),
    [
        (0, None, "kernel_internal"),
        (SB_NOUSER, None, "kernel_internal"),
        # As mount_pseudo() of v4.4.
        (SB_KERNMOUNT, None, "kernel_internal"),
        (SB_KERNMOUNT | SB_NOUSER, None, "detached"),
        # While it is mounted, and while it is unmounted.
        (SB_KERNMOUNT | SB_NOUSER | SB_BORN, None, None),
        (SB_KERNMOUNT | SB_NOUSER, "s_root", None),
        (SB_KERNMOUNT | SB_NOUSER, "s_active", None),
    ],
)
def test_a_superblock_without_a_mount_is_the_kernels_own_or_detached_or_on_its_way(
    cleared_flags: int, cleared_member: str | None, state: str | None
) -> None:
    (sockfs,) = (row for row in EAGER.rows("superblocks") if row["fstype"] == "sockfs")

    def clear(prog: Program) -> None:
        sb = Object(prog, "struct super_block", address=sockfs["address"])
        word(prog, sb.s_flags.address_, sb.s_flags.value_() & ~cleared_flags)
        if cleared_member:
            overlay(prog, sb.member_(cleared_member).address_, bytes(sizeof(sb.member_(cleared_member))))

    (row,) = (row for row in audit(EAGER, clear)["superblocks"] if row["address"] == sockfs["address"])
    assert [name for name in ("kernel_internal", "detached") if row[name]] == ([state] if state else [])
    assert row["mounts"] == 0


def test_a_sample_that_is_free_memory_gives_no_numbers() -> None:
    """All objects have the size of the first; that of a free object would be the size of anything."""

    def free(prog: Program) -> None:
        lru = Object(prog, "struct list_lru *", EAGER.rows("list_lrus")[0]["address"])
        sample = lru.node[0].memcg_lrus.lru[0]
        info = slab_object_info(prog, sample)
        # As on a slab that was full: no object is on the lists of a CPU.
        word(prog, info.slab.freelist.address_, 0)
        free_slot(prog, info.slab_cache, sample.value_())
        assert slab_object_info(prog, sample).allocated is False

    with pytest.raises(CollectError, match=r"a list_lru points to 0x\w+, where it has no 24 bytes"):
        audit(EAGER, free)


@pytest.mark.parametrize("layout", ["array_rcu", "xarray", "ext_mlrus"])
def test_a_sample_smaller_than_what_the_kernel_requested_gives_no_numbers(layout: str) -> None:
    machine = Machine(layout)
    dentry, _ = machine.superblock()
    machine.list_lru(dentry, used_ids=machine.online)
    holder, struct_name = dentry, "struct list_lru"
    if layout.startswith("ext_"):
        holder, struct_name = machine.kernel.prog.read_word(dentry), "struct list_lru_ext"
    other = machine.kernel.slab("kmalloc-192")
    machine.kernel.put(holder, struct_name, node=other)
    with pytest.raises(CollectError, match=f"a list_lru points to {other:#x}, where it has no 256 bytes"):
        machine.walk()


def test_slab_caches_without_kmallocs_are_no_sizes() -> None:
    """The estimates take the sizes of kmalloc() from the caches with these names."""

    def rename(prog: Program) -> None:
        for cache in for_each_slab_cache(prog):
            if cache.name.string_().startswith(b"kmalloc-"):
                overlay(prog, cache.name.value_(), b"m")

    with pytest.raises(CollectError, match="none that is named kmalloc-<size>"):
        audit(EAGER, rename)


def test_one_root_of_each_filesystem_stands_for_its_objects_unless_two_disagree() -> None:
    """sysfs and cgroup2 have their inodes in the same slab cache, at the same offset."""

    def move_inode(prog: Program) -> None:
        fstypes = {"sysfs": "/sys", "cgroup2": "/sys/fs/cgroup"}
        roots = [Object(prog, "struct super_block", address=superblock_of(EAGER, m)).s_root for m in fstypes.values()]
        caches = {slab_object_info(prog, root.d_inode).slab_cache.value_() for root in roots}
        assert caches == {find_slab_cache(prog, "inode_cache").value_()}
        word(prog, roots[0].d_inode.address_, roots[0].d_inode.value_() + 8)

    prog = kernel.open_kernel(str(EAGER.path)).prog
    move_inode(prog)
    with pytest.raises(charges.NotScanned, match="has objects of two kinds"):
        charges.scan(prog, superblocks.walk(prog), [])


@pytest.mark.parametrize(
    ("name", "node"),
    [(EAGER.name, 1), (LAZY.name, 1), ("deb7-n2", 0), ("deb7-n2", 1), ("deb510-n4", 0), ("deb510-n4", 1)],
)
def test_a_node_without_memory_has_no_slabs_to_count(name: str, node: int) -> None:
    """A hole in the node numbers, or online for its CPUs or with movable memory only: it has no kmem_cache_node."""
    core = BY_NAME[name]

    def lose_memory(prog: Program) -> None:
        with_memory = prog["node_states"][prog.constant("N_NORMAL_MEMORY")]
        word(prog, with_memory.address_, with_memory.bits[0].value_() & ~(1 << node))
        word(prog, nodes_of(prog)[node].address_, 0)

    def nodes_of(prog: Program) -> list[Object]:
        cache = find_slab_cache(prog, core.target["slab_cache"])
        nodes = range(core.target["nr_node_ids"])
        if cache.prog_.type("struct kmem_cache").has_member("per_node"):  # since v7.1
            return [cache.per_node[nid].node for nid in nodes]
        return [cache.node[nid] for nid in nodes]

    (target,) = audit(core, lose_memory)["targets"]
    lost = nodes_of(core.kernel.prog)[node]
    cache = find_slab_cache(core.kernel.prog, core.target["slab_cache"])
    barn = cache.per_node[node].barn if cache.prog_.type("struct kmem_cache").has_member("per_node") else None
    slabs = lost.nr_slabs.counter.value_()
    assert target["slab_cache_bytes"] == core.target["slab_cache_bytes"] - slabs * 4096 > 0
    partial_slabs = lost.nr_partial.value_()
    objects = lost.total_objects.counter.value_()
    active_objects = core.target["slab_cache_active_objects"] - target["slab_cache_active_objects"]
    # Since v6.18 full sheaves of free objects wait in the barn of a node.
    in_sheaves = barn.nr_full.value_() * cache.sheaf_capacity.value_() if barn else 0
    assert objects - partial_slabs * objects // slabs - in_sheaves <= active_objects <= objects
