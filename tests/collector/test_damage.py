"""Kernels with damaged or changing memory: an audit ends soon with a status and a reason, and never gives a number."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable

import pytest
from drgn import FaultError, Object, Program, TypeKind, offsetof
from drgn.helpers.linux.slab import find_slab_cache

from pipeline.collector import __main__ as collector
from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.access.btf import Btf, BtfError
from pipeline.collector.status import CollectError
from pipeline.collector.walk import list_lrus, superblocks
from pipeline.fanout.runner import frame
from tests.collector.conftest import CORES, Core
from tests.collector.made import overlay, word

BY_NAME = {core.name: core for core in CORES}
EAGER, LAZY = BY_NAME["deb510-n2"], BY_NAME["deb61-n2"]


@pytest.fixture(autouse=True, scope="module")
def undamaged_rows() -> None:
    """Audit the undamaged cores first: a test that asks for their rows has changed the functions that read them."""
    for core in (EAGER, LAZY):
        assert core.target


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


def memcg_member(path: str, value: int) -> Callable[[Program], None]:
    """Set a member of four bytes of the first memcg."""

    def damage(prog: Program) -> None:
        overlay(prog, first_memcg(prog) + offsetof(prog.type("struct mem_cgroup"), path), struct.pack("<i", value))

    return damage


def nodes(count: int) -> Callable[[Program], None]:
    return lambda prog: overlay(prog, prog["nr_node_ids"].address_, struct.pack("<I", count))


def a_directory_of_another_memcg(prog: Program) -> None:
    memcg = Object(prog, "struct mem_cgroup *", first_memcg(prog))
    word(prog, memcg.css.cgroup.kn.address_of_().value_(), prog["root_mem_cgroup"].css.cgroup.kn.value_())


def more_memory_than_the_nodes_have(prog: Program) -> None:
    word(prog, prog["_totalram_pages"].address_, 1 << 62)


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
        memcg_member("id.id", -(2**31)),
        memcg_member("css.id", 0),
        memcg_member("kmemcg_id", -2),
        nodes(0),
        nodes(2**30),
        a_directory_of_another_memcg,
        more_memory_than_the_nodes_have,
    ],
)
def test_damage_to_an_eager_kernel_gives_no_numbers(damage: Callable[[Program], None]) -> None:
    assert_no_numbers(EAGER, damage)


def columns_after(damage: Callable[[Program], None]) -> dict[str, object]:
    """Audit a damaged eager kernel and return the row of targets."""
    opened_kernel = kernel.open_kernel(str(EAGER.path))
    damage(opened_kernel.prog)
    return target_row(snapshot.take(opened_kernel))


@pytest.mark.parametrize("member", ["wall_to_monotonic.tv_sec", "wall_to_monotonic.tv_nsec", "offs_boot", "xtime_sec"])
@pytest.mark.parametrize("value", [-1 << 63, 0x5A5A5A5A5A5A5A5A])
def test_a_clock_that_cannot_be_gives_no_times(member: str, value: int) -> None:
    def damage(prog: Program) -> None:
        timekeeper = snapshot._timekeeper(prog)
        word(prog, timekeeper.address_ + offsetof(timekeeper.type_, member), value)

    target = columns_after(damage)
    assert (target["captured_at"], target["booted_at"], target["uptime_s"]) == (None, None, None)


def test_more_slabs_than_memory_has_room_for_are_not_counted() -> None:
    def damage(prog: Program) -> None:
        cache = find_slab_cache(prog, EAGER.target["slab_cache"])
        overlay(prog, cache.oo.address_of_().value_(), b"\xff" * 4)

    target = columns_after(damage)
    assert target["slab_cache_bytes"] is None


def test_the_items_of_a_memcg_without_an_id_are_looked_for_on_no_list() -> None:
    """An online memcg to which objects are charged."""
    assert columns_after(memcg_member("kmemcg_id", -1))["layout"] == "array_rcu"


@pytest.mark.parametrize("member", ["d_inode", "d_sb"])
def test_a_filesystem_with_a_broken_root_has_no_charged_objects(member: str) -> None:
    def damage(prog: Program) -> None:
        root = [sb.root for sb in superblocks.walk(prog) if sb.fstype == b"tmpfs"][-1]
        word(prog, root + offsetof(prog.type("struct dentry"), member), 0)

    notes = columns_after(damage)["notes"]
    assert "charged objects are not counted: the root of the superblock" in str(notes)


# Changes during a walk. The walk calls superblocks.root_by_superblock() before it reads the arrays again. So the tests
# change the kernel in that function.


def audit_while(monkeypatch: pytest.MonkeyPatch, core: Core, change: Callable[[Program], object]) -> snapshot.Snapshot:
    """Audit a core as if it were running; the superblock whose address `change` returns goes away."""
    opened_kernel = kernel.open_kernel(str(core.path))
    root_by_superblock = superblocks.root_by_superblock

    def changed_roots(prog: Program) -> dict[int, int]:
        departed_address = change(prog)
        return {address: root for address, root in root_by_superblock(prog).items() if address != departed_address}

    monkeypatch.setattr(superblocks, "root_by_superblock", changed_roots)
    monkeypatch.setattr(list_lrus, "is_running", lambda prog: True)
    return snapshot.take(opened_kernel)


def test_a_walk_under_which_nothing_changed_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = audit_while(monkeypatch, EAGER, lambda prog: None), snapshot.take(kernel.open_kernel(str(EAGER.path)))
    assert [table.rows for table in snapshots[0].tables[1:]] == [table.rows for table in snapshots[1].tables[1:]]


def test_a_superblock_that_went_away_is_left_out_with_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    superblock = tmpfs7()
    audit = audit_while(monkeypatch, EAGER, lambda prog: superblock)
    target = target_row(audit)
    assert target["superblocks"] == EAGER.target["superblocks"] - 1
    assert target["list_lrus"] == EAGER.target["list_lrus"] - 2
    assert (target["consistency"], target["notes"]) == ("raced", "1 superblocks went away during the walk")
    assert superblock not in {row[0] for row in audit.superblocks.rows}
    assert superblock not in {row[audit.list_lrus.columns.index("superblock")] for row in audit.list_lrus.rows}


@pytest.mark.parametrize("member", ["mnt_mountpoint", "mnt_ns"])
def test_a_mount_that_is_moved_before_its_path_is_read_has_none(monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    """Another directory could be where its dentries were."""
    prog = kernel.open_kernel(str(EAGER.path)).prog
    superblock = Object(prog, "struct super_block *", tmpfs7())
    moved = superblock.s_mounts.next.value_() - offsetof(prog.type("struct mount"), "mnt_instance")
    load_paths = superblocks._Mounts.load_paths

    def load_and_move(self: superblocks._Mounts, mounts: Iterable[int]) -> None:
        load_paths(self, mounts)
        word(prog, moved + offsetof(prog.type("struct mount"), member), 0)

    monkeypatch.setattr(superblocks._Mounts, "load_paths", load_and_move)
    monkeypatch.setattr(superblocks, "is_running", lambda prog: True)
    paths = {sb["address"]: sb["mountpoint"] for sb in EAGER.rows("superblocks")} | {superblock.value_(): None}
    assert {sb.address: sb.mountpoint and sb.mountpoint.decode() for sb in superblocks.walk(prog)} == paths


def tmpfs7() -> int:
    """The address of a superblock."""
    return next(sb["address"] for sb in EAGER.rows("superblocks") if sb["mountpoint"] == "/m/tmpfs7")


def target_row(audit: snapshot.Snapshot) -> dict[str, object]:
    return dict(zip(audit.target.columns, audit.target.rows[0], strict=True))


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
    """The array is replaced at the last list_lru of the walk, so all reads before that are of the old array."""
    superblock = EAGER.rows("superblocks")[-1]["address"]
    address = pointer(EAGER, superblock, path)
    count_items = list_lrus._Walk.count_items

    def count_and_replace(self: list_lrus._Walk) -> None:
        count_items(self)
        word(self.prog, address, 0)

    monkeypatch.setattr(list_lrus._Walk, "count_items", count_and_replace)
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced") as error_info:
        audit_while(monkeypatch, EAGER, lambda prog: None)
    assert error_info.value.status == "bad_core"  # walked again, then inconsistent


def set_first_words(monkeypatch: pytest.MonkeyPatch, first_words: Callable[[Program], dict[int, int]]) -> None:
    """Replace words of the core for the first reading of the list_lrus; later readings get the core's own words."""
    read_states = list_lrus._Walk.read_states

    def read_first_states(self: list_lrus._Walk, lrus: list[list_lrus.ListLru]) -> list[list_lrus._State]:
        replacements = first_words(self.prog)
        core_words = {address: self.prog.read_word(address) for address in replacements}
        for address, value in replacements.items():
            word(self.prog, address, value)
        states = read_states(self, lrus)
        for address, value in core_words.items():
            word(self.prog, address, value)
        monkeypatch.setattr(list_lrus._Walk, "read_states", read_states)
        return states

    monkeypatch.setattr(list_lrus._Walk, "read_states", read_first_states)


def memcg_lrus_pointers(superblock: int) -> list[int]:
    """The addresses of the member memcg_lrus of both nodes of a superblock's list_lru of dentries."""
    node_bytes = EAGER.kernel.prog.type("struct list_lru_node").size
    address = pointer(EAGER, superblock, "memcg_lrus")
    return [address, address + node_bytes]


@pytest.mark.parametrize("missing", [slice(0, 2), slice(1, 2)])
def test_a_list_lru_read_while_its_arrays_are_made_gives_no_numbers(
    monkeypatch: pytest.MonkeyPatch, missing: slice
) -> None:
    """memcg_init_list_lru() sets memcg_aware, and then node by node an array when all of its objects are allocated.

    A superblock on the list has its arrays, so one without arrays has replaced another at the same address.
    """
    superblock = EAGER.rows("superblocks")[-1]["address"]
    set_first_words(monkeypatch, lambda prog: dict.fromkeys(memcg_lrus_pointers(superblock)[missing], 0))
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, lambda prog: None)


def test_a_list_lru_read_when_destroyed_and_made_again_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    superblock = EAGER.rows("superblocks")[-1]["address"]
    set_first_words(monkeypatch, lambda prog: {pointer(EAGER, superblock, "node"): 0})
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, lambda prog: None)


def test_a_superblock_at_the_address_of_one_that_went_away_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    superblock = tmpfs7()
    set_first_words(monkeypatch, lambda prog: dict.fromkeys(memcg_lrus_pointers(superblock), 0))

    def reuse_address(prog: Program) -> None:
        word(prog, superblock + offsetof(prog.type("struct super_block"), "s_root"), 0xFFFF888000001000)

    audit = audit_while(monkeypatch, EAGER, reuse_address)
    target = target_row(audit)
    assert target["superblocks"] == EAGER.target["superblocks"] - 1
    assert target["list_lrus"] == EAGER.target["list_lrus"] - 2
    assert target["consistency"] == "raced"
    assert superblock not in {row[0] for row in audit.superblocks.rows}


def test_memory_of_a_superblock_that_went_away_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    superblock = tmpfs7()

    def reuse_memory(prog: Program) -> int:
        word(prog, pointer(EAGER, superblock, "node"), 0xDEADBEEFCAFE1234)
        return superblock

    audit = audit_while(monkeypatch, EAGER, reuse_memory)
    assert len(audit.list_lrus.rows) == EAGER.target["list_lrus"] - 2


def test_a_superblock_that_was_mounted_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """sget() puts a superblock with its list_lrus on the list; later fill_super() sets its root."""
    superblock = tmpfs7()
    walk = superblocks.walk

    def without_a_root(prog: Program) -> list[superblocks.SuperBlock]:
        sbs = walk(prog)
        next(sb for sb in sbs if sb.address == superblock).root = 0
        return sbs

    monkeypatch.setattr(superblocks, "walk", without_a_root)
    audit = audit_while(monkeypatch, EAGER, lambda prog: None)
    assert superblock in {row[0] for row in audit.superblocks.rows}


def symbol_lru() -> int:
    """The address of a list_lru outside superblocks."""
    return next(lru["address"] for lru in EAGER.rows("list_lrus") if lru["owner"] == "symbol")


def destroy_symbol_lru(prog: Program) -> None:
    word(prog, symbol_lru() + offsetof(prog.type("struct list_lru"), "node"), 0)


def test_an_unaware_list_of_no_superblock_that_went_away_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmount of an xfs destroys two such lists."""
    read_states = list_lrus._Walk.read_states

    def read_unaware_states(self: list_lrus._Walk, lrus: list[list_lrus.ListLru]) -> list[list_lrus._State]:
        overlay(self.prog, symbol_lru() + offsetof(self.prog.type("struct list_lru"), "memcg_aware"), b"\0")
        return read_states(self, lrus)

    monkeypatch.setattr(list_lrus._Walk, "read_states", read_unaware_states)
    audit = audit_while(monkeypatch, EAGER, destroy_symbol_lru)
    assert symbol_lru() not in {row[audit.list_lrus.columns.index("address")] for row in audit.list_lrus.rows}
    target = target_row(audit)
    notes = f"list_lru {symbol_lru():#x} went away during the walk"
    assert (target["consistency"], target["notes"]) == ("raced", notes)


def test_a_list_for_memcgs_of_no_superblock_that_went_away_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memcg-aware lists come and go only with superblocks."""
    with pytest.raises(CollectError, match=r"arrays of list_lru 0x\w+ were replaced"):
        audit_while(monkeypatch, EAGER, destroy_symbol_lru)


def test_a_core_that_lost_all_arrays_of_a_list_gives_no_numbers() -> None:
    def blank(prog: Program) -> None:
        for address in memcg_lrus_pointers(EAGER.rows("superblocks")[-1]["address"]):
            word(prog, address, 0)

    assert_no_numbers(EAGER, blank)


def node_of_an_xarray(prog: Program) -> tuple[int, int]:
    """The addresses of a list_lru whose xarray has nodes, and of the first of these nodes."""
    for sb in LAZY.rows("superblocks"):
        lru = sb["address"] + offsetof(prog.type("struct super_block"), "s_dentry_lru")
        head = prog.read_word(lru + offsetof(prog.type("struct list_lru"), "xa.xa_head"))
        if head & 3 == 2:
            return lru, head - 2
    raise AssertionError("no xarray with nodes")


def slots(value: Callable[[int], int]) -> Callable[[Program], None]:
    def damage(prog: Program) -> None:
        _, node = node_of_an_xarray(prog)
        slots_address = node + offsetof(prog.type("struct xa_node"), "slots")
        overlay(prog, slots_address, struct.pack("<64Q", *[value(node)] * 64))

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
    opened_kernel = kernel.open_kernel(str(core.path))
    damage(opened_kernel.prog)
    start = time.monotonic()
    with pytest.raises((CollectError, FaultError)) as error_info:
        snapshot.take(opened_kernel)
    assert getattr(error_info.value, "status", "bad_core") == "bad_core"
    assert time.monotonic() - start < 30, "bounded"


def test_what_an_xarray_may_hold_besides_pointers_is_stepped_over() -> None:
    """XA_RETRY_ENTRY and XA_ZERO_ENTRY (include/linux/xarray.h) are internal entries, not list_lru_memcg."""
    objects = {lru["address"]: lru["list_lru_one_objects"] for lru in LAZY.rows("list_lrus")}
    opened_kernel = kernel.open_kernel(str(LAZY.path))
    _, node = node_of_an_xarray(opened_kernel.prog)
    slots_address = node + offsetof(opened_kernel.prog.type("struct xa_node"), "slots")
    empty_slots = [i for i in range(64) if not opened_kernel.prog.read_word(slots_address + 8 * i)][:2]
    for i, entry in zip(empty_slots, (256 << 2 | 2, 257 << 2 | 2), strict=True):
        word(opened_kernel.prog, slots_address + 8 * i, entry)
    rows = snapshot.take(opened_kernel).list_lrus
    changed_objects = {
        row[rows.columns.index("address")]: row[rows.columns.index("list_lru_one_objects")] for row in rows.rows
    }
    assert changed_objects == objects


@pytest.mark.parametrize("damage", [lambda b: b[:10], lambda b: b[:25], lambda b: b[:5000], lambda b: b[:2] + b[100:]])
def test_a_damaged_btf_is_refused(damage: Callable[[bytes], bytes]) -> None:
    prog = EAGER.kernel.prog
    start, stop = prog.symbol("__start_BTF").address, prog.symbol("__stop_BTF").address
    with pytest.raises(BtfError):
        Btf(prog, damage(prog.read(start, stop - start)))


def test_a_struct_that_contains_itself_is_damaged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """drgn raises RecursionError where it looks for a member of such a struct."""
    struct_type = struct.pack("<6I", 1, 4 << 24 | 1, 8, 0, 1, 0)
    blob = struct.pack("<HBB5I", 0xEB9F, 1, 0, 24, 0, 24, 24, 6) + struct_type + b"\0page\0"
    prog = EAGER.kernel.prog
    struct_page = Btf(prog, blob).find_type(prog, {TypeKind.STRUCT}, "page", None)
    monkeypatch.setattr(snapshot, "take", lambda *_: struct_page.has_member("flags"))
    assert collector.main([str(EAGER.path)]) == 1
    failure = frame.parse(capsys.readouterr().out.encode())
    assert isinstance(failure, frame.Failure)
    assert (failure.status, failure.error_type) == ("no_types", "RecursionError")


class _OldTypes:
    """A type finder that hides members that older kernels lack: the rcu header, memcg_aware."""

    def __init__(self, prog: Program, hidden: dict[str, str]) -> None:
        self.types = {}
        for name, member in hidden.items():
            core_type = prog.type(f"struct {name}")
            members = [m for m in core_type.members if m.name != member]
            self.types[name] = prog.struct_type(name, core_type.size, members)
        if "list_lru_memcg" in hidden:
            self.types["list_lru_memcg"] = prog.struct_type("list_lru_memcg", 0, [])

    def find(self, prog: Program, kinds: object, name: str, filename: str | None) -> object:
        return self.types.get(name)


@pytest.mark.parametrize(
    "hidden",
    [{"list_lru_memcg": "rcu"}, {"list_lru": "memcg_aware"}, {"list_lru_memcg": "rcu", "list_lru": "memcg_aware"}],
)
def test_older_array_layouts_hold_the_same(hidden: dict[str, str]) -> None:
    """v4.13 to v4.16 have no rcu_head before the pointers, v4.17 to v5.1 no memcg_aware; the memory is the same.

    Without the header memcg_lrus points to the pointers, which are 16 bytes further on.
    """
    opened_kernel = kernel.open_kernel(str(EAGER.path))
    prog = opened_kernel.prog
    node_type = prog.type("struct list_lru_node")
    offset = offsetof(node_type, "memcg_lrus")
    if "list_lru_memcg" in hidden:
        for lru in EAGER.rows("list_lrus"):
            nodes = prog.read_word(lru["address"])
            for nid in range(2):
                address = nodes + nid * node_type.size + offset
                word(prog, address, prog.read_word(address) + 16)
    prog.register_type_finder("old", _OldTypes(prog, hidden).find, enable_index=0)
    audit = snapshot.take(opened_kernel)
    layout = target_row(audit)["layout"]
    assert layout == ("array" if "list_lru_memcg" in hidden else "array_rcu")
    assert audit.list_lrus.rows == EAGER.snapshot.list_lrus.rows
