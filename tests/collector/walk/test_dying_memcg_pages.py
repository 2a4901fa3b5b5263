"""The pages of dying memcgs, compared with drgn's helpers page by page, and in memmaps made by hand."""

from __future__ import annotations

import random
import struct
import tracemalloc
from array import array
from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest
from drgn import (
    Architecture,
    FaultError,
    Object,
    Platform,
    PlatformFlags,
    Program,
    container_of,
    offsetof,
    sizeof,
)
from drgn.helpers.linux.cgroup import css_for_each_descendant_pre
from drgn.helpers.linux.fs import inode_path
from drgn.helpers.linux.mm import PageSwapBacked, compound_nr, pfn_to_page
from drgn.helpers.linux.nodemask import for_each_online_node
from drgn.helpers.linux.slab import find_slab_cache

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.access.memory import WordFinder
from pipeline.collector.walk import dying_memcg_pages, layouts, memcgs, superblocks
from pipeline.collector.walk.memmap import compound_order_location
from tests.collector.c_types import declare
from tests.collector.conftest import CORES, Core, with_cores
from tests.collector.made import overlay, word
from tests.reference import CSS_ONLINE, has_member

has_dying = with_cores(lambda core: "dying='0'" not in core.truth("shape"))


def charged_pages(prog: Program) -> list[Object]:
    """The pages that are charged to dying memcgs, each as a ``struct page *``."""
    css = prog["root_mem_cgroup"].css.address_of_()
    dying = {
        container_of(css, "struct mem_cgroup", "css").value_()
        for css in css_for_each_descendant_pre(css)
        if not css.flags & CSS_ONLINE
    }
    pages = []
    for node in (prog["node_data"][nid] for nid in for_each_online_node(prog)):
        first = node.node_start_pfn.value_()
        for pfn in range(first, first + node.node_spanned_pages.value_()):
            page = pfn_to_page(prog, pfn)
            try:
                memcg = page.memcg_data if has_member(page, "memcg_data") else page.mem_cgroup
                if memcg.value_() in dying:
                    pages.append(page)
            except FaultError:  # a hole of the memmap
                pass
    return pages


@has_dying
def test_each_file_is_as_drgns_helpers_see_it(core: Core) -> None:
    prog = core.kernel.prog
    mountpoints = {row["address"]: row["mountpoint"] for row in core.rows("superblocks")}
    pages: Counter[Any] = Counter()
    for page in charged_pages(prog):
        inode = page.mapping.host
        path = inode_path(inode)
        assert path
        kind = "shmem" if PageSwapBacked(page) else "file"
        sb = inode.i_sb.value_()
        pages[kind, sb, inode.i_ino.value_(), f"{mountpoints[sb]}/{path.decode()}"] += compound_nr(page).value_()
    rows = core.rows("dying_memcg_pages")
    assert {(row["kind"], row["superblock"], row["inode"], row["path"]): row["pages"] for row in rows} == pages
    # The guest's init writes one page into each of these.
    assert {path for _, _, _, path in pages} == {f"/run/dying{i + 1}" for i in range(core.target["dying_memcgs"])}
    assert all(row["memcgs"] == row["files"] == row["parent"] == 1 and not row["deleted"] for row in rows)


@has_dying
def test_files_beyond_the_limit_are_one_row(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dying_memcg_pages, "_MAX_FILES", 1)
    (table,) = (table for table in snapshot.take(core.kernel).tables if table.name == "dying_memcg_pages")
    named, rest = sorted(
        (dict(zip(table.columns, row, strict=True)) for row in table.rows), key=lambda row: row["inode"] is None
    )
    assert named["files"] == named["pages"] == 1
    files = core.target["dying_memcgs"] - 1
    assert rest["files"] == rest["memcgs"] == rest["pages"] == files
    assert rest["bytes"] == files * 4096
    assert {rest[column] for column in ("parent", "superblock", "inode", "deleted", "path", "path_raw")} == {None}


def dying_page_rows(prog: Program) -> list[dict[str, Any]]:
    """The rows of an audit of a core whose memory was changed."""
    tables = snapshot.take(kernel.Kernel(prog, "btf")).tables
    (table,) = (table for table in tables if table.name == "dying_memcg_pages")
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@has_dying
@pytest.mark.parametrize("damage", ["mapping", "inode", "dentry", "name"])
def test_a_file_that_cannot_be_read_has_no_name_and_the_others_do(core: Core, damage: str) -> None:
    prog = kernel.open_kernel(str(core.path)).prog
    pages = charged_pages(prog)
    page = pages[0]
    inode = page.mapping.host
    link = inode.i_dentry.first
    pointers = {
        "mapping": page.mapping,
        "inode": page.mapping.host,
        "dentry": link,
        "name": container_of(link, "struct dentry", "d_u.d_alias").d_name.name,
    }
    number = None if damage in ("mapping", "inode") else inode.i_ino.value_()
    word(prog, pointers[damage].address_, 0xFFFF800000001008)
    rows = dying_page_rows(prog)
    assert [(row["inode"], row["files"], row["pages"]) for row in rows if row["path"] is None] == [(number, 1, 1)]
    assert sum(row["pages"] for row in rows) == len(pages)


@has_dying
def test_a_memcg_without_a_page_is_kept_by_something_else(core: Core) -> None:
    prog = kernel.open_kernel(str(core.path)).prog
    page = charged_pages(prog)[0]
    member = "memcg_data" if has_member(page, "memcg_data") else "mem_cgroup"
    word(prog, page.value_() + offsetof(prog.type("struct page"), member), 0)
    rows = dying_page_rows(prog)
    assert [(row["memcgs"], row["files"], row["pages"]) for row in rows if row["kind"] == "other"] == [(1, 0, 0)]
    assert sum(row["pages"] for row in rows) == core.target["dying_memcgs"] - 1


@has_dying
@pytest.mark.parametrize("function", ["compound_order_location", "_read_files"])
@pytest.mark.parametrize("error", [LookupError("no order"), AttributeError("no order"), ZeroDivisionError("no order")])
def test_what_cannot_be_read_of_the_pages_leaves_the_rest_of_an_audit(
    core: Core, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    monkeypatch.setattr(dying_memcg_pages, function, Mock(side_effect=error))
    tables = snapshot.take(core.kernel).tables
    rows = {table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
    assert rows["dying_memcg_pages"] == []
    (target,) = rows["targets"]
    assert target["notes"] == "what keeps dying memcgs is not known: no order"
    assert rows["list_lrus"] == core.rows("list_lrus")


@has_dying
def test_pages_are_not_counted_without_the_slabs_that_show_that_the_memmap_is_whole(core: Core) -> None:
    prog = kernel.open_kernel(str(core.path)).prog
    word(prog, find_slab_cache(prog, "dentry").node[0].nr_slabs.counter.address_, 1 << 20)
    scan = snapshot._scan_charges(prog, layouts.detect(prog), superblocks.walk(prog), memcgs.walk(prog))
    object_charges, dying_pages, (reason, note) = scan
    assert object_charges is dying_pages is None
    assert "slabs of a slab cache" in reason
    assert note == "what keeps dying memcgs is not known: charged objects are not counted"


class Memmap:
    """A piece of a memmap made by hand, with pages of a memcg of the core, which is dying here.

    The number of its first page is odd, so that the piece can end between the first two pages of a compound page.
    """

    FIRST, PAGES = 0x101, 64

    def __init__(self, core: Core) -> None:
        self.prog = kernel.open_kernel(str(core.path)).prog
        self.page = self.prog.type("struct page")
        self.memcgs = memcgs.walk(self.prog)
        self.memcg = self.memcgs[-1]
        self.memcg.online = False
        self.data = bytearray(self.PAGES * sizeof(self.page))

    def set(self, pfn: int, mapping: int = 0, *flags: str, memcg_flag: int = 0) -> None:
        """Charge a page to the memcg."""
        member = "memcg_data" if self.page.has_member("memcg_data") else "mem_cgroup"
        start = (pfn - self.FIRST) * sizeof(self.page)
        values = {
            "flags": sum(1 << self.prog.constant(flag).value_() for flag in flags),
            "mapping": mapping,
            member: self.memcg.address | memcg_flag,
        }
        for name, value in values.items():
            struct.pack_into("<Q", self.data, start + offsetof(self.page, name), value)

    def set_order(self, pfn: int, order: int) -> None:
        """Set the order of the compound page with a head, in the first tail: a byte, from v6.6 on that of its flags."""
        is_byte = self.prog["init_uts_ns"].name.release.string_().startswith((b"5.", b"6.1."))
        self.data[(pfn + 1 - self.FIRST) * sizeof(self.page) + 17 * is_byte] = order

    def counts(self, pages: int = PAGES) -> dict[tuple[str, int], int]:
        """The audit's number of pages by kind and mapping, in the first structs of the piece."""
        address = pfn_to_page(self.prog, self.FIRST).value_()
        overlay(self.prog, address, bytes(self.data))
        counter = dying_memcg_pages.DyingMemcgPages(self.prog, self.memcgs)
        counter.add(self.FIRST, array("Q", self.data[: pages * sizeof(self.page)]))
        return {
            (kind, mapping): count for (_, kind), pages in counter.pages.items() for mapping, count in pages.items()
        }


@pytest.fixture(params=["deb510-n1", "deb61-n2", "deb612-n4", "deb7-n2"])
def memmap(request: pytest.FixtureRequest) -> Memmap:
    return Memmap(next(core for core in CORES if core.name == request.param))


MAPPING = 0xFFFF888012345678


@pytest.mark.parametrize(
    ("mapping", "flags", "kind"),
    [
        (MAPPING, ["PG_uptodate"], "file"),
        (MAPPING, ["PG_uptodate", "PG_swapbacked"], "shmem"),
        (MAPPING | 1, ["PG_swapbacked"], "anonymous"),
        (MAPPING | 1, [], "anonymous"),  # after madvise(MADV_FREE)
        (MAPPING | 3, ["PG_swapbacked"], "anonymous"),  # KSM
        (0, ["PG_swapbacked"], "anonymous"),  # a tmpfs's page in the swap cache
        (MAPPING | 2, [], "kernel"),  # movable memory of a driver
        (0, [], "kernel"),
    ],
)
def test_the_flags_of_a_page_and_its_mapping_tell_its_kind(
    memmap: Memmap, mapping: int, flags: list[str], kind: str
) -> None:
    memmap.set(0x110, mapping, *flags)
    assert memmap.counts() == {(kind, MAPPING if kind in ("file", "shmem") else 0): 1}


def test_a_slab_before_v5_3_is_one() -> None:
    """Its page has the pointer to a memcg, and the pointer to its cache where others have their mapping."""
    memmap = Memmap(next(core for core in CORES if core.name == "deb510-n1"))
    memmap.set(0x110, MAPPING, "PG_slab")
    assert memmap.counts() == {("slab", 0): 1}


def test_kernel_pages_of_v5_11_have_a_flag_in_the_pointer(memmap: Memmap) -> None:
    memmap.set(0x110, memcg_flag=2)
    assert memmap.counts() == {("kernel", 0): 1}


def test_the_vector_of_a_slab_and_other_pointers_are_left_out(memmap: Memmap) -> None:
    memmap.set(0x110, MAPPING, memcg_flag=1)
    memmap.set(0x111, MAPPING, memcg_flag=8)
    assert memmap.counts() == {}


@pytest.mark.parametrize("order", [1, 4])
def test_a_compound_page_is_counted_whole(memmap: Memmap, order: int) -> None:
    memmap.set(0x110, MAPPING, "PG_head")
    memmap.set_order(0x110, order)
    assert memmap.counts() == {("file", MAPPING): 1 << order}
    assert compound_nr(pfn_to_page(memmap.prog, 0x110)).value_() == 1 << order


def test_the_tail_of_a_compound_page_can_be_in_the_next_piece(memmap: Memmap) -> None:
    memmap.set(0x110, MAPPING, "PG_head")
    memmap.set_order(0x110, 3)
    assert memmap.counts(pages=0x110 - memmap.FIRST + 1) == {("file", MAPPING): 8}


@pytest.mark.parametrize(("pfn", "order"), [(0x112, 4), (0x110, 200)], ids=["of the vmemmap", "broken"])
def test_a_head_that_cannot_be_one_has_no_pages(memmap: Memmap, pfn: int, order: int) -> None:
    """The tails of a page of hugetlbfs can share the struct of its head."""
    memmap.set(pfn, MAPPING, "PG_head")
    memmap.set_order(pfn, order)
    assert memmap.counts() == {("file", MAPPING): 0}


def test_a_million_files_fit_into_memory(memmap: Memmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files that are named have more than a count: 20,000 others take less than 400 bytes each."""
    monkeypatch.setattr(dying_memcg_pages, "_MAX_FILES", 0)
    monkeypatch.setattr(dying_memcg_pages, "_read_files", lambda prog, sbs, mappings: {})
    counter = dying_memcg_pages.DyingMemcgPages(memmap.prog, memmap.memcgs)
    for pfn in range(memmap.FIRST, memmap.FIRST + memmap.PAGES):
        memmap.set(pfn, MAPPING)
    page_words = array("Q", memmap.data)
    step, offset = sizeof(memmap.page) // 8, offsetof(memmap.page, "mapping") // 8
    pieces = 20000 // memmap.PAGES
    tracemalloc.start()
    for i in range(pieces):
        mappings = range(MAPPING + 1024 * i * memmap.PAGES, MAPPING + 1024 * (i + 1) * memmap.PAGES, 1024)
        page_words[offset::step] = array("Q", mappings)
        counter.add(memmap.FIRST, page_words)
    (group,) = (group for group in counter.groups([]) if group.kind == "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(group.mappings) == group.pages == pieces * memmap.PAGES
    assert peak < 400 * group.pages


@pytest.mark.parametrize(
    ("machine", "order"), [(Architecture.S390X, "unsigned int"), (Architecture.S390X, "unsigned char"),
                           (Architecture.X86_64, "unsigned int")],
)  # fmt: skip
def test_the_order_is_in_a_byte_or_in_older_kernels_in_an_int(machine: Architecture, order: str) -> None:
    """A big-endian int has its low byte last."""
    prog = Program(Platform(machine))
    declare(
        prog, f"struct page {{ unsigned long flags; {order} compound_dtor; {order} compound_order; long rest[6]; }};"
    )
    page = prog.type("struct page")
    is_little = bool(prog.platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)
    offset = sizeof(page) + offsetof(page, "compound_order")
    data = bytearray(2 * sizeof(page))
    size = sizeof(page.member("compound_order").type)
    data[offset : offset + size] = (9).to_bytes(size, "little" if is_little else "big")
    index, shift = compound_order_location(prog)
    word_bytes = data[8 * index : 8 * index + 8]
    assert int.from_bytes(word_bytes, "little" if is_little else "big") >> shift & 0xFF == 9


@pytest.mark.parametrize("wanted", [0, 1, 7, 300])
def test_words_are_found_as_by_a_loop(wanted: int) -> None:
    source = random.Random(wanted)
    addresses = [0xFFFF888000000000 + 4096 * source.randrange(1 << 16) for _ in range(600)]
    words = array("Q", source.choices([0, (1 << 64) - 1, *addresses], k=2000))
    indexes = [index for index, word in enumerate(words) if word in addresses[:wanted]]
    assert WordFinder(addresses[:wanted]).indexes(words) == indexes
    assert len(indexes) >= wanted
