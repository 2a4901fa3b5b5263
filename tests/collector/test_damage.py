"""Kernels whose memory is broken, or was changing: a status and a reason, soon, and never a number."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest
from drgn import FaultError, Object, Program, offsetof
from drgn.helpers.linux.slab import find_slab_cache

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.access.btf import Btf, BtfError
from pipeline.collector.status import CollectError
from pipeline.collector.walk import list_lrus, superblocks
from tests.collector.conftest import CORES, Core

BY_NAME = {core.name: core for core in CORES}
EAGER, LAZY = BY_NAME["deb510-n2"], BY_NAME["deb61-n2"]


def overlay(prog: Program, address: int, data: bytes) -> None:
    """Let these bytes stand at an address instead of what is in the core."""
    prog.add_memory_segment(address, len(data), lambda at, count, offset, physical: data[offset : offset + count])


def word(prog: Program, address: int, value: int) -> None:
    overlay(prog, address, struct.pack("<Q", value & (1 << 64) - 1))


def first_superblock(prog: Program) -> int:
    return prog["super_blocks"].next.value_()


def first_memcg(prog: Program) -> int:
    root = prog["root_mem_cgroup"]
    link = root.css.children.next.value_()
    return link - offsetof(prog.type("struct mem_cgroup"), "css.sibling")


def superblocks_in_a_circle(prog: Program) -> None:
    second = prog.read_word(first_superblock(prog))
    word(prog, second, first_superblock(prog))


def a_superblock_taken_off_its_list(prog: Program) -> None:
    word(prog, first_superblock(prog), first_superblock(prog))  # list_del_init()


def a_null_link(prog: Program) -> None:
    word(prog, first_superblock(prog), 0)


def a_poisoned_link(prog: Program) -> None:
    word(prog, first_superblock(prog), 0xDEAD000000000100)


def memcgs_in_a_circle(prog: Program) -> None:
    sibling = first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), "css.sibling.next")
    word(prog, sibling, first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), "css.sibling"))


def a_memcg_that_is_its_own_child(prog: Program) -> None:
    children = first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), "css.children.next")
    word(prog, children, first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), "css.sibling"))


def cache_ids(value: int) -> Callable[[Program], None]:
    def damage(prog: Program) -> None:
        address = prog["memcg_nr_cache_ids"].address_
        overlay(prog, address, struct.pack("<i", value) + prog.read(address + 4, 4))

    return damage


def a_memcg_with_an_id_that_cannot_be(prog: Program) -> None:
    kmemcg_id = first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), "kmemcg_id")
    overlay(prog, kmemcg_id, struct.pack("<i", 2**31 - 1))


def no_nodes(prog: Program) -> None:
    overlay(prog, prog["nr_node_ids"].address_, bytes(4))


def a_blank_page_of_slab_caches(prog: Program) -> None:
    cache = find_slab_cache(prog, "dentry").value_()
    overlay(prog, cache & -4096, bytes(4096))


def a_filesystem_without_a_name(prog: Program) -> None:
    pipefs = next(sb for sb in superblocks.walk(prog) if sb.fstype == b"pipefs")
    fs_type = Object(prog, "struct super_block *", pipefs.address).s_type
    overlay(prog, fs_type.name.value_(), b"\0")


@pytest.mark.parametrize(
    "damage",
    [
        a_blank_page_of_slab_caches,
        a_filesystem_without_a_name,
        superblocks_in_a_circle,
        a_superblock_taken_off_its_list,
        a_null_link,
        a_poisoned_link,
        memcgs_in_a_circle,
        a_memcg_that_is_its_own_child,
        cache_ids(-5),
        cache_ids(2**31 - 1),
        cache_ids(100),
        a_memcg_with_an_id_that_cannot_be,
        no_nodes,
    ],
)
def test_damage_to_an_eager_kernel_gives_no_numbers(damage: Callable[[Program], None]) -> None:
    assert_no_numbers(EAGER, damage)


# What changes under a walk. superblocks.listed() is asked right after it, before the arrays are looked at again, so
# there the kernel changes.


def audit_while(monkeypatch: pytest.MonkeyPatch, core: Core, change: Callable[[Program], object]) -> snapshot.Snapshot:
    opened = kernel.open_kernel(str(core.path))
    listed = superblocks.listed

    def then(prog: Program) -> dict[int, int]:
        gone = change(prog)
        return {address: root for address, root in listed(prog).items() if address != gone}

    monkeypatch.setattr(superblocks, "listed", then)
    monkeypatch.setattr(list_lrus, "is_running", lambda prog: True)
    return snapshot.take(opened)


def test_a_walk_under_which_nothing_changed_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = audit_while(monkeypatch, EAGER, lambda prog: None), snapshot.take(kernel.open_kernel(str(EAGER.path)))
    assert [table.rows for table in snapshots[0].tables[1:]] == [table.rows for table in snapshots[1].tables[1:]]


def test_a_superblock_that_went_away_is_left_out_with_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = next(sb["address"] for sb in EAGER.rows("superblocks") if sb["mountpoint"] == "/m/tmpfs7")
    found = audit_while(monkeypatch, EAGER, lambda prog: gone)
    target = dict(zip(found.target.columns, found.target.rows[0], strict=True))
    assert target["superblocks"] == EAGER.target["superblocks"] - 1
    assert target["list_lrus"] == EAGER.target["list_lrus"] - 2
    assert (target["consistency"], target["notes"]) == ("raced", "1 superblocks went away during the walk")
    assert gone not in {row[0] for row in found.superblocks.rows}
    assert gone not in {row[found.list_lrus.columns.index("superblock")] for row in found.list_lrus.rows}


def pointer(core: Core, superblock: int, path: str) -> int:
    """The address of a pointer in a superblock's list_lru of dentries, or in its first node."""
    prog = core.kernel.prog
    lru = superblock + offsetof(prog.type("struct super_block"), "s_dentry_lru")
    node = lru + offsetof(prog.type("struct list_lru"), "node")
    if path == "node":
        return node
    return prog.read_word(node) + offsetof(prog.type("struct list_lru_node"), path)


@pytest.mark.parametrize("path", ["node", "memcg_lrus"])
def test_an_array_that_was_replaced_gives_no_numbers(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Whatever is read between is of the old array: the change comes when the walk has come to the last list_lru."""
    last = EAGER.rows("superblocks")[-1]["address"]
    at = pointer(EAGER, last, path)
    counted = list_lrus._Walk.count_items

    def then(self: list_lrus._Walk) -> None:
        counted(self)
        word(self.prog, at, 0)

    monkeypatch.setattr(list_lrus._Walk, "count_items", then)
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced") as caught:
        audit_while(monkeypatch, EAGER, lambda prog: None)
    assert caught.value.status == "bad_core"  # walked again, then inconsistent


def read_before(monkeypatch: pytest.MonkeyPatch, before: Callable[[Program], dict[int, int]]) -> None:
    """Let words be as they were before when the list_lrus are looked at first, and as in the core when again."""
    look = list_lrus._Walk.look

    def first(self: list_lrus._Walk, lrus: list[list_lrus.ListLru]) -> list[list_lrus._State]:
        words = before(self.prog)
        now = {at: self.prog.read_word(at) for at in words}
        for at, value in words.items():
            word(self.prog, at, value)
        states = look(self, lrus)
        for at, value in now.items():
            word(self.prog, at, value)
        monkeypatch.setattr(list_lrus._Walk, "look", look)
        return states

    monkeypatch.setattr(list_lrus._Walk, "look", first)


def memcg_lrus_of(superblock: int) -> list[int]:
    """The addresses of both nodes' memcg_lrus of a superblock's list_lru of dentries."""
    node_bytes = EAGER.kernel.prog.type("struct list_lru_node").size
    at = pointer(EAGER, superblock, "memcg_lrus")
    return [at, at + node_bytes]


@pytest.mark.parametrize("missing", [slice(0, 2), slice(1, 2)])
def test_a_list_lru_read_while_its_arrays_are_made_gives_no_numbers(
    monkeypatch: pytest.MonkeyPatch, missing: slice
) -> None:
    """memcg_init_list_lru() sets memcg_aware and then, node by node, an array once all of its objects are there.

    A superblock that is listed has its arrays: one that went away was listed, and another one came to its address.
    """
    superblock = EAGER.rows("superblocks")[-1]["address"]
    read_before(monkeypatch, lambda prog: dict.fromkeys(memcg_lrus_of(superblock)[missing], 0))
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, lambda prog: None)


def test_a_list_lru_read_when_destroyed_and_made_again_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    superblock = EAGER.rows("superblocks")[-1]["address"]
    read_before(monkeypatch, lambda prog: {pointer(EAGER, superblock, "node"): 0})
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, lambda prog: None)


def test_a_superblock_at_the_address_of_one_that_went_away_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reused = next(sb["address"] for sb in EAGER.rows("superblocks") if sb["mountpoint"] == "/m/tmpfs7")
    read_before(monkeypatch, lambda prog: dict.fromkeys(memcg_lrus_of(reused), 0))

    def another(prog: Program) -> None:
        word(prog, reused + offsetof(prog.type("struct super_block"), "s_root"), 0xFFFF888000001000)

    found = audit_while(monkeypatch, EAGER, another)
    target = dict(zip(found.target.columns, found.target.rows[0], strict=True))
    assert target["superblocks"] == EAGER.target["superblocks"] - 1
    assert target["list_lrus"] == EAGER.target["list_lrus"] - 2
    assert target["consistency"] == "raced"
    assert reused not in {row[0] for row in found.superblocks.rows}


def test_memory_of_a_superblock_that_went_away_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = next(sb["address"] for sb in EAGER.rows("superblocks") if sb["mountpoint"] == "/m/tmpfs7")

    def reused(prog: Program) -> int:
        word(prog, pointer(EAGER, gone, "node"), 0xDEADBEEFCAFE1234)
        return gone

    found = audit_while(monkeypatch, EAGER, reused)
    assert len(found.list_lrus.rows) == EAGER.target["list_lrus"] - 2


def test_a_superblock_that_was_mounted_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """sget() puts it on the list with its list_lrus, fill_super() gives it a root."""
    mounted = next(sb["address"] for sb in EAGER.rows("superblocks") if sb["mountpoint"] == "/m/tmpfs7")
    walk = superblocks.walk

    def without_a_root(prog: Program) -> list[superblocks.SuperBlock]:
        sbs = walk(prog)
        next(sb for sb in sbs if sb.address == mounted).root = 0
        return sbs

    monkeypatch.setattr(superblocks, "walk", without_a_root)
    found = audit_while(monkeypatch, EAGER, lambda prog: None)
    assert mounted in {row[0] for row in found.superblocks.rows}


def symbols_list() -> int:
    """The address of a list_lru of no superblock."""
    return next(lru["address"] for lru in EAGER.rows("list_lrus") if lru["owner"] == "symbol")


def destroyed(prog: Program) -> None:
    word(prog, symbols_list() + offsetof(prog.type("struct list_lru"), "node"), 0)


def test_an_unaware_list_of_no_superblock_that_went_away_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmounted xfs takes two with it."""
    look = list_lrus._Walk.look

    def of_no_memcg(self: list_lrus._Walk, lrus: list[list_lrus.ListLru]) -> list[list_lrus._State]:
        overlay(self.prog, symbols_list() + offsetof(self.prog.type("struct list_lru"), "memcg_aware"), b"\0")
        return look(self, lrus)

    monkeypatch.setattr(list_lrus._Walk, "look", of_no_memcg)
    found = audit_while(monkeypatch, EAGER, destroyed)
    assert symbols_list() not in {row[found.list_lrus.columns.index("address")] for row in found.list_lrus.rows}
    target = dict(zip(found.target.columns, found.target.rows[0], strict=True))
    notes = f"list_lru {symbols_list():#x} went away during the walk"
    assert (target["consistency"], target["notes"]) == ("raced", notes)


def test_a_list_for_memcgs_of_no_superblock_that_went_away_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those come and go with superblocks alone."""
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, destroyed)


def test_a_core_that_lost_all_arrays_of_a_list_gives_no_numbers() -> None:
    def blank(prog: Program) -> None:
        for at in memcg_lrus_of(EAGER.rows("superblocks")[-1]["address"]):
            word(prog, at, 0)

    assert_no_numbers(EAGER, blank)


def node_of_an_xarray(prog: Program) -> tuple[int, int]:
    """The address of a list_lru of which the xarray has nodes, and of its first node."""
    for sb in LAZY.rows("superblocks"):
        lru = sb["address"] + offsetof(prog.type("struct super_block"), "s_dentry_lru")
        head = prog.read_word(lru + offsetof(prog.type("struct list_lru"), "xa.xa_head"))
        if head & 3 == 2:
            return lru, head - 2
    raise AssertionError("no xarray with nodes")


def slots(value: Callable[[int], int]) -> Callable[[Program], None]:
    def damage(prog: Program) -> None:
        _, node = node_of_an_xarray(prog)
        at = node + offsetof(prog.type("struct xa_node"), "slots")
        overlay(prog, at, struct.pack("<64Q", *[value(node)] * 64))

    return damage


def a_node_of_another_array(prog: Program) -> None:
    _, node = node_of_an_xarray(prog)
    word(prog, node + offsetof(prog.type("struct xa_node"), "array"), 0xFFFF888000001000)


def a_node_too_high(prog: Program) -> None:
    _, node = node_of_an_xarray(prog)
    overlay(prog, node + offsetof(prog.type("struct xa_node"), "shift"), b"\x3c")


@pytest.mark.parametrize(
    "damage",
    [
        slots(lambda node: node + 2),  # nodes that are their own children
        slots(lambda node: 0x10),
        slots(lambda node: 0xFFFF888000001001),
        a_node_of_another_array,
        a_node_too_high,
    ],
)
def test_damage_to_an_xarray_gives_no_numbers(damage: Callable[[Program], None]) -> None:
    assert_no_numbers(LAZY, damage)


def assert_no_numbers(core: Core, damage: Callable[[Program], None]) -> None:
    opened = kernel.open_kernel(str(core.path))
    damage(opened.prog)
    start = time.monotonic()
    with pytest.raises((CollectError, FaultError)) as caught:
        snapshot.take(opened)
    assert getattr(caught.value, "status", "bad_core") == "bad_core"
    assert time.monotonic() - start < 30, "bounded"


def test_what_an_xarray_may_hold_besides_pointers_is_stepped_over() -> None:
    """XA_RETRY_ENTRY and XA_ZERO_ENTRY (include/linux/xarray.h) are no list_lru_memcg."""
    before = {lru["address"]: lru["list_lru_one_objects"] for lru in LAZY.rows("list_lrus")}
    opened = kernel.open_kernel(str(LAZY.path))
    _, node = node_of_an_xarray(opened.prog)
    at = node + offsetof(opened.prog.type("struct xa_node"), "slots")
    empty = [i for i in range(64) if not opened.prog.read_word(at + 8 * i)][:2]
    for i, entry in zip(empty, (256 << 2 | 2, 257 << 2 | 2), strict=True):
        word(opened.prog, at + 8 * i, entry)
    rows = snapshot.take(opened).list_lrus
    after = {row[rows.columns.index("address")]: row[rows.columns.index("list_lru_one_objects")] for row in rows.rows}
    assert after == before


@pytest.mark.parametrize("damage", [lambda b: b[:10], lambda b: b[:25], lambda b: b[:5000], lambda b: b[:2] + b[100:]])
def test_a_damaged_btf_is_refused(damage: Callable[[bytes], bytes]) -> None:
    prog = EAGER.kernel.prog
    start, stop = prog.symbol("__start_BTF").address, prog.symbol("__stop_BTF").address
    with pytest.raises(BtfError):
        Btf(prog, damage(prog.read(start, stop - start)))


class _OldTypes:
    """A finder that hides what a struct of an older kernel lacks: the rcu header, memcg_aware."""

    def __init__(self, prog: Program, hidden: dict[str, str]) -> None:
        self.types = {}
        for name, member in hidden.items():
            now = prog.type(f"struct {name}")
            members = [m for m in now.members if m.name != member]
            self.types[name] = prog.struct_type(name, now.size, members)
        if "list_lru_memcg" in hidden:
            self.types["list_lru_memcg"] = prog.struct_type("list_lru_memcg", 0, [])

    def find(self, prog: Program, kinds: object, name: str, filename: str | None) -> object:
        return self.types.get(name)


@pytest.mark.parametrize(
    "hidden",
    [{"list_lru_memcg": "rcu"}, {"list_lru": "memcg_aware"}, {"list_lru_memcg": "rcu", "list_lru": "memcg_aware"}],
)
def test_older_array_layouts_hold_the_same(hidden: dict[str, str]) -> None:
    """v4.13 to v4.16 had no rcu_head before the pointers, v4.17 to v5.1 no memcg_aware: the same memory, told so.

    Without the header memcg_lrus points at the pointers, 16 bytes further on.
    """
    opened = kernel.open_kernel(str(EAGER.path))
    prog = opened.prog
    node_bytes, at = prog.type("struct list_lru_node").size, offsetof(prog.type("struct list_lru_node"), "memcg_lrus")
    if "list_lru_memcg" in hidden:
        for lru in EAGER.rows("list_lrus"):
            nodes = prog.read_word(lru["address"])
            for nid in range(2):
                place = nodes + nid * node_bytes + at
                word(prog, place, prog.read_word(place) + 16)
    prog.register_type_finder("old", _OldTypes(prog, hidden).find, enable_index=0)
    taken = snapshot.take(opened)
    layout = taken.target.rows[0][taken.target.columns.index("layout")]
    assert layout == ("array" if "list_lru_memcg" in hidden else "array_rcu")
    assert taken.list_lrus.rows == EAGER.snapshot.list_lrus.rows
