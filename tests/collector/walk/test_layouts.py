"""Every layout of list_lru; for most of them there is no packaged kernel.

machine.py lays out each in memory. The expected bytes here are computed by hand from the kernel's allocations.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter

import pytest
from drgn import Program

from pipeline.collector import snapshot
from pipeline.collector.access import kallsyms
from pipeline.collector.access.kernel import open_kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import layouts, list_lrus, superblocks
from pipeline.collector.walk.list_lrus import ListLru
from tests.collector.conftest import CORES
from tests.collector.made import MODULE, ByteOrder
from tests.collector.walk.machine import CACHES, ROOT, Machine
from tests.collector.walk.structs import LAYOUTS, Members


def sizes(lru: ListLru) -> tuple[int, ...]:
    return (
        lru.nodes, lru.list_lru_one_objects, lru.list_lru_one_bytes, lru.pointer_array_bytes, lru.node_array_bytes,
        lru.xa_node_bytes,
    )  # fmt: skip


# The sizes() of three list_lrus, used by two memcgs, by one and by none. The first figure is the number of pointer
# arrays, or with an xarray the number of lists per memcg. The node array's bytes include list_lru_ext.
SIZES = {
    "array": 3 * [(3, 12, 12 * 32, 3 * 32, 256, 0)],
    "array_rcu": 3 * [(3, 12, 12 * 32, 3 * 64, 256, 0)],
    "mlrus": 3 * [(1, 4, 4 * 96, 64, 256, 0)],
    "mlrus_lazy": [(1, 2, 2 * 128, 64, 256, 0), (1, 1, 128, 64, 256, 0), (1, 0, 0, 64, 256, 0)],
    "xarray": [(4, 2, 2 * 128, 0, 256, 3 * 584), (4, 1, 128, 0, 256, 584), (4, 0, 0, 0, 256, 0)],
    "xarray_lock": [(4, 2, 2 * 192, 0, 256, 3 * 584), (4, 1, 192, 0, 256, 584), (4, 0, 0, 0, 256, 0)],
    "ext_mlrus": 3 * [(1, 4, 4 * 96, 64, 288, 0)],
    "ext_mlrus_lazy": [(1, 2, 2 * 128, 64, 288, 0), (1, 1, 128, 64, 288, 0), (1, 0, 0, 64, 288, 0)],
    "ext_xarray": [(4, 2, 2 * 128, 0, 288, 3 * 584), (4, 1, 128, 0, 288, 584), (4, 0, 0, 0, 288, 0)],
}
BYTE_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
COMBINATIONS = [Members(*present) for present in itertools.product((False, True), repeat=len(Members._fields))]


def member_names(members: Members) -> str:
    """Names of the members that a kernel has, as the id of a test."""
    return "+".join(name for name, is_present in members._asdict().items() if is_present)


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
@pytest.mark.parametrize("members", COMBINATIONS, ids=member_names)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_told_and_sized(layout: str, members: Members, byte_order: ByteOrder) -> None:
    machine = Machine(layout, members, byte_order=byte_order)
    low, high = machine.online
    dentry, inode = machine.superblock()
    machine.list_lru(
        dentry, {(0, ROOT): 5, (2, ROOT): 1, (0, high): 7, (2, low): 2, (2, high): 4}, used_ids=(low, high)
    )
    machine.list_lru(inode, used_ids=(low,))
    destroyed_lrus = machine.superblock()
    unaware, _ = machine.superblock()
    machine.list_lru(unaware, {(0, ROOT): 3, (2, ROOT): 1}, memcg_aware=False)
    unused_lru = machine.kernel.variable("shadow_nodes", "struct list_lru")
    machine.list_lru(unused_lru, {(0, ROOT): 9})

    findings, lrus = machine.walk()

    assert findings.layout == layout
    assert (layout in layouts.EAGER) is not (layout in layouts.LAZY)
    assert findings.cache_ids == (None if "xarray" in layout else 4)
    assert findings.object_cache.name.string_().decode() == CACHES[layout][1]
    assert not findings.race_notes
    assert [sizes(lrus[address]) for address in (dentry, inode, unused_lru)] == SIZES[layout]
    assert [lrus[address].memcg_aware for address in (dentry, inode, unused_lru)] == [True] * 3
    assert (lrus[dentry].root_items, lrus[dentry].memcg_items) == (6, 13)
    assert lrus[dentry].items_by_id == {low: 2, high: 11}
    assert (lrus[inode].root_items, lrus[inode].items_by_id) == (0, {})
    assert (lrus[unused_lru].root_items, lrus[unused_lru].items_by_id) == (9, {})
    for address in destroyed_lrus:
        assert sizes(lrus[address]) == (0,) * 6
    # Without the member memcg_aware, an empty xarray could belong to an aware list; no kernel has this combination.
    is_known = members.memcg_aware or "xarray" not in layout
    assert lrus[unaware].memcg_aware is not is_known
    assert sizes(lrus[unaware])[1:] == (0, 0, 0, SIZES[layout][0][4], 0)
    assert (lrus[unaware].root_items, lrus[unaware].memcg_items) == (4, 0)


@pytest.mark.parametrize(
    ("layout", "pointer"),
    [(layout, "node") for layout in LAYOUTS] + [(layout, "mlrus") for layout in LAYOUTS if "mlrus" in layout],
)
def test_what_is_replaced_under_a_walk_gives_no_numbers(
    monkeypatch: pytest.MonkeyPatch, layout: str, pointer: str
) -> None:
    machine = Machine(layout)
    dentry, inode = machine.superblock()
    for address in (dentry, inode):
        machine.list_lru(address, used_ids=machine.online)
    sbs = {sb.address: sb.root for sb in machine.sbs}
    monkeypatch.setattr(list_lrus, "is_running", lambda prog: True)
    monkeypatch.setattr(superblocks, "root_by_superblock", lambda prog: sbs)
    findings, lrus = machine.walk()
    assert (findings.race_notes, findings.departed_superblocks) == ([], set())
    assert sizes(lrus[inode]) == SIZES[layout][0]

    def replace_array(prog: Program) -> dict[int, int]:
        holder, struct_name = inode, "struct list_lru"
        if layout.startswith("ext_"):
            holder, struct_name = prog.read_word(inode), "struct list_lru_ext"
        machine.kernel.put(holder, struct_name, **{pointer: machine.kernel.slab("kmalloc-256")})
        return sbs

    monkeypatch.setattr(superblocks, "root_by_superblock", replace_array)
    with pytest.raises(CollectError, match="were replaced during the walk"):
        machine.walk()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "xarray" not in layout])
def test_a_list_of_memcgs_without_their_arrays_gives_no_numbers(layout: str) -> None:
    machine = Machine(layout)
    dentry, inode = machine.superblock()
    machine.list_lru(dentry, used_ids=machine.online)
    machine.list_lru(inode, memcg_aware=False)
    machine.kernel.put(inode, "struct list_lru", memcg_aware=True)
    with pytest.raises(CollectError, match=f"list_lru 0x{inode:x} is memcg-aware and has no arrays"):
        machine.walk()


@pytest.mark.parametrize(
    ("layout", "cache", "array_bytes"),
    [
        ("array", None, 0),  # kmalloc(0) is ZERO_SIZE_PTR
        ("array_rcu", "kmalloc-16", 3 * 16),  # kvmalloc(16 + 8 * 0)
        ("mlrus", "kmalloc-16", 16),
        ("mlrus_lazy", "kmalloc-16", 16),
        ("ext_mlrus", "kmalloc-16", 16),
    ],
)
def test_without_ids_there_are_arrays_of_no_pointers(layout: str, cache: str | None, array_bytes: int) -> None:
    """A kernel with cgroup_disable=memory or cgroup.memory=nokmem, or before its first memcg."""
    machine = Machine(layout, ids=0)
    machine.pointer_array = lambda: machine.kernel.slab(cache) if cache else 16  # type: ignore[method-assign]
    dentry, inode = machine.superblock()
    for address in (dentry, inode):
        machine.list_lru(address, {(0, ROOT): 3, (2, ROOT): 4})
    findings, lrus = machine.walk()
    assert (findings.cache_ids, findings.object_bytes, findings.race_notes) == (0, None, [])
    for address in (dentry, inode):
        assert lrus[address].memcg_aware
        assert (lrus[address].list_lru_one_objects, lrus[address].list_lru_one_bytes) == (0, 0)
        assert lrus[address].pointer_array_bytes == array_bytes
        assert (lrus[address].root_items, lrus[address].memcg_items) == (7, 0)


def test_every_array_can_be_looked_at_rather_than_a_sample() -> None:
    """An eager kernel has an object in every slot of every array, and all arrays have one size."""
    machine = Machine("array_rcu")
    arrays = [machine.kernel.slab("kmalloc-64") for _ in range(6)]
    next_array = iter(arrays)
    machine.pointer_array = lambda: next(next_array)  # type: ignore[method-assign]
    for lru in machine.superblock():
        machine.list_lru(lru)
    machine.walk(verify=True)
    prog = machine.kernel.prog
    prog.add_memory_segment(arrays[-1] + 16 + 8, 8, lambda address, count, offset, physical: bytes(count))
    machine.walk()
    with pytest.raises(CollectError, match=f"array at {arrays[-1]:#x} has 64 bytes and 1 of 4 slots empty"):
        machine.walk(verify=True)


def test_arrays_that_vmalloc_had_to_give_cost_their_pages() -> None:
    """1534 ids: 16 + 8 * 1534 = 12,288 bytes take 4 contiguous pages, or if these are not available 3 of vmalloc's."""
    machine = Machine("array_rcu", ids=1534)
    kernel = machine.kernel
    dentry, inode = machine.superblock()
    arrays = iter([kernel.compound(4), kernel.vmalloc(3), kernel.vmalloc(3), *(kernel.compound(4) for _ in range(3))])
    machine.pointer_array = lambda: next(arrays)  # type: ignore[method-assign]
    machine.list_lru(dentry, {(2, 2): 9})
    machine.list_lru(inode)
    _, lrus = machine.walk()
    assert sizes(lrus[dentry]) == (3, 4602, 147_264, 16384 + 2 * 12288, 256, 0)
    assert sizes(lrus[inode]) == (3, 4602, 147_264, 3 * 16384, 256, 0)
    assert lrus[dentry].items_by_id == {2: 9}


def test_arrays_without_a_header_at_the_size_of_a_booted_kernel() -> None:
    """4.14.177: 8 * 382 = 3,056 bytes take 4,096 from kmalloc, and the last pointer is at 8 * 381."""
    machine = Machine("array", ids=382)
    machine.online = (0, 381)
    machine.kernel.cache("kmalloc-4096", 4096)
    machine.pointer_array = lambda: machine.kernel.slab("kmalloc-4096")  # type: ignore[method-assign]
    dentry, inode = machine.superblock()
    machine.list_lru(dentry, {(0, 381): 5, (2, 0): 1})
    machine.list_lru(inode)
    _, lrus = machine.walk(verify=True)
    assert sizes(lrus[dentry]) == sizes(lrus[inode]) == (3, 1146, 36_672, 3 * 4096, 256, 0)
    assert lrus[dentry].items_by_id == {0: 1, 381: 5}


def test_pages_of_64_kib_and_objects_of_128_bytes() -> None:
    """arm64 before v6.5 has no kmalloc cache below 128. 24574 ids: 16 + 8 * 24574 = 196,608 bytes take 3 pages, or 4
    contiguous ones.
    """
    machine = Machine("array_rcu", ids=24574, page_bytes=65536)
    kernel = machine.kernel
    kernel.caches["kmalloc-32"] = kernel.caches["kmalloc-128"]
    arrays = iter([kernel.compound(4), kernel.vmalloc(3), kernel.compound(4)])
    machine.pointer_array = lambda: next(arrays)  # type: ignore[method-assign]
    dentry, _ = machine.superblock()
    machine.list_lru(dentry)
    _, lrus = machine.walk()
    assert sizes(lrus[dentry]) == (3, 73_722, 9_436_416, 2 * 262_144 + 196_608, 256, 0)


def test_a_kernel_whose_types_have_no_lists_for_memcgs_is_unsupported() -> None:
    """v3.19, or no CONFIG_MEMCG_KMEM: struct list_lru_node has no memcg_lrus. The audit has the superblocks only."""
    core = CORES[0]
    opened_kernel = open_kernel(str(core.path))
    core_type = opened_kernel.prog.type("struct list_lru_node")
    members = [member for member in core_type.members if member.name != "memcg_lrus"]
    older_type = opened_kernel.prog.struct_type("list_lru_node", core_type.size, members)
    opened_kernel.prog.register_type_finder(
        "older", lambda prog, kinds, name, file: older_type if name == "list_lru_node" else None, enable_index=0
    )
    audit = snapshot.take(opened_kernel)
    assert audit.unsupported_reason is not None
    assert "older than v4.0, or built without CONFIG_MEMCG" in audit.unsupported_reason
    assert (audit.list_lrus.rows, audit.memcgs.rows) == ([], [])
    assert len(audit.superblocks.rows) == len(core.rows("superblocks")) > 0
    assert audit.target.rows[0][audit.target.columns.index("layout")] == "none"


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_who_owns_a_list_lru_that_is_no_superblocks(byte_order: ByteOrder) -> None:
    machine = Machine("array_rcu", byte_order=byte_order)
    kernel = machine.kernel
    kernel.cache("xfs_buftarg", 384)
    buftarg = kernel.slab("xfs_buftarg"), kernel.slab("xfs_buftarg")
    inside_slab = buftarg[1] + 64
    shadow_nodes = kernel.variable("shadow_nodes", "struct list_lru")
    in_module = kernel.zero(MODULE + 0x2000, 256)
    beside_a_symbol, in_no_table = in_module + 64, in_module + 128
    strtab = kernel.write(MODULE + 0x1000, b"\0nfs4_xattr_cache_lru\0nfs4_xattr_cache\0__key.1\0")
    # st_name, st_info, st_other, st_shndx, st_value, st_size
    elf64_sym = struct.Struct({"little": "<", "big": ">"}[byte_order] + "IBBHQQ")
    symtab = kernel.write(
        MODULE + 0x1800,
        elf64_sym.pack(0, 0, 0, 0, in_no_table, 0)
        + elf64_sym.pack(22, 1, 0, 9, beside_a_symbol - 8, 64)
        + elf64_sym.pack(1, 1, 0, 9, in_module, 32)
        + elf64_sym.pack(39, 1, 0, 9, in_module, 0),
    )
    kallsyms = kernel.put(MODULE + 0x100, "struct mod_kallsyms", symtab=symtab, num_symtab=4, strtab=strtab)
    unreadable = kernel.put(MODULE + 0x200, "struct module", kallsyms=0xFFFFFFFFC1000000)
    modules = kernel.variable("modules", "struct list_head", unreadable)
    nfsv4 = kernel.put(MODULE, "struct module", list__next=modules, kallsyms=kallsyms)
    kernel.put(unreadable, "struct module", list__next=nfsv4)
    for address in (inside_slab, shadow_nodes, in_module, beside_a_symbol, in_no_table):
        machine.list_lru(address)
    _, lrus = machine.walk()
    assert {address: (lru.owner, lru.name) for address, lru in lrus.items()} == {
        inside_slab: ("slab", "xfs_buftarg+64"),
        shadow_nodes: ("symbol", "shadow_nodes"),
        in_module: ("symbol", "nfs4_xattr_cache_lru"),
        beside_a_symbol: ("unknown", None),
        in_no_table: ("unknown", None),
    }


def test_list_lrus_that_nobody_is_known_to_own_are_counted_and_noted() -> None:
    """A real core whose symbols cannot be looked up by address."""
    core = CORES[0]
    opened_kernel = open_kernel(str(core.path))
    find = kallsyms.load(opened_kernel.prog, ())
    opened_kernel.prog.register_symbol_finder(
        "by name", lambda prog, name, address, find_one: [] if address is not None else find(prog, name, None, find_one)
    )
    opened_kernel.prog.set_enabled_symbol_finders(["by name"])
    audit = snapshot.take(opened_kernel)
    columns = audit.list_lrus.columns
    owners = Counter(row[columns.index("owner")] for row in audit.list_lrus.rows)
    assert owners == {"superblock": 2 * len(audit.superblocks.rows), "unknown": 1}
    assert audit.target.rows[0][audit.target.columns.index("notes")] == "list_lrus of an unknown owner: 1"
    bytes_index = columns.index("list_lru_one_bytes")
    normal_rows = core.snapshot.list_lrus.rows
    assert sum(row[bytes_index] for row in audit.list_lrus.rows) == sum(row[bytes_index] for row in normal_rows)
