"""Per-CPU memory: of real kernels by the bitmaps of the allocator, of older ones in memory that is laid out by hand."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from drgn import FindObjectFlags, Object, Program, offsetof

from pipeline.collector.access.memory import has_member
from pipeline.collector.status import CollectError
from pipeline.collector.walk import memcgs, percpu
from tests.collector.conftest import Core, with_cores
from tests.collector.made import SyntheticKernel

UNITS = 4

CHUNK = """
struct pcpu_chunk {
    struct list_head list; int free_bytes; void *base_addr; int start_offset; int end_offset; int nr_pages;
    int nr_populated; int nr_empty_pop_pages;
};
"""


class PerCpuKernel(SyntheticKernel):
    """A kernel with 3 lists of chunks of a type. The first chunk has 2 pages, behind 5 with static variables.

    :param array: the variable with the lists.
    :param types: of chunks.
    """

    def __init__(self, array: str = "pcpu_chunk_lists", types: int = 1) -> None:
        super().__init__(CHUNK)
        self.array = self.next_data
        self.next_data += 256
        self.zero(self.array, 256)
        for i in range(3 * types):
            self.words(self.array + 16 * i, self.array + 16 * i, self.array + 16 * i)
        self.variable(array, "struct list_head *", self.array)
        self.variable("pcpu_nr_slots", "int", 3)
        self.variable("pcpu_nr_units", "int", UNITS)
        self.variable("pcpu_base_addr", "void *", 0x10000)
        # 5 pages and 0x800 bytes behind: a whole number of pages with the 0x800 that are not its own.
        first = self.chunk(0, pages=2, populated=2, empty=1, used=0x1000, base_addr=0x15000, end_offset=0x800)
        self.variable("pcpu_first_chunk", "struct pcpu_chunk *", first)
        self.count = self.variable("pcpu_nr_populated", "unsigned long", 6)

    def chunk(self, index: int, pages: int, populated: int, empty: int, used: int, **members: int) -> int:
        """Add a chunk at the head of a list."""
        address, self.next_data = self.next_data, self.next_data + 128
        self.zero(address, 128)
        members.update(nr_pages=pages, nr_populated=populated, nr_empty_pop_pages=empty)
        self.put(address, "struct pcpu_chunk", free_bytes=4096 * pages - used, **members)
        head = self.array + 16 * index
        self.words(address, self.prog.read_word(head), head)
        self.words(head, address)
        return address


def constant(prog: Program, constant_name: str, value: int) -> None:
    def find(prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        return Object(prog, "int", value=value) if name == constant_name and flags & FindObjectFlags.CONSTANT else None

    prog.register_object_finder(constant_name, find, enable_index=0)


has_percpu = with_cores(lambda core: core.has_truth("percpu.json"))


@has_percpu
def test_chunks_have_the_pages_and_bytes_of_their_bitmaps(core: Core) -> None:
    chunks = percpu.left(core.kernel.prog)
    bitmaps = json.loads(core.truth("percpu.json"))
    for name in ("populated_bytes", "used_bytes", "partly_used_bytes"):
        assert getattr(chunks, name) == bitmaps[name], name


@has_percpu
def test_memcgs_have_the_allocations_that_their_structs_point_to(core: Core) -> None:
    prog = core.kernel.prog
    memcg_bytes = percpu.memcgs(prog, memcgs.walk(prog))
    bitmaps = json.loads(core.truth("percpu.json"))
    assert memcg_bytes == (bitmaps["online_memcg_bytes"], bitmaps["dying_memcg_bytes"], 0)


def test_chunks_are_part_of_meminfos_percpu(core: Core) -> None:
    match = re.search(r"^Percpu: +(\d+) kB", core.truth("meminfo"), re.MULTILINE)
    assert match
    chunks = percpu.left(core.kernel.prog)
    assert 0 < chunks.used_bytes <= chunks.partly_used_bytes <= chunks.populated_bytes < 1024 * int(match[1])


@pytest.mark.parametrize(
    ("array", "types"),
    [("pcpu_slot", 1), ("pcpu_chunk_lists", 2), ("pcpu_chunk_lists", 1)],
    ids=["before v5.9", "before v5.14", "v5.14"],
)
def test_all_lists_are_walked(array: str, types: int) -> None:
    kernel = PerCpuKernel(array, types)
    if types > 1:
        constant(kernel.prog, "PCPU_NR_CHUNK_TYPES", types)
    kernel.chunk(0, pages=8, populated=8, empty=0, used=0x7FF0)
    kernel.chunk(3 * types - 1, pages=8, populated=3, empty=1, used=20)
    kernel.number(kernel.count, 8, 6 + 8 + 3)
    chunks = percpu.left(kernel.prog)
    assert chunks.populated_bytes == (8 + 3) * 4096 * UNITS
    assert chunks.used_bytes == (0x7FF0 + 20) * UNITS
    assert chunks.partly_used_bytes == (8 + 2) * 4096 * UNITS


def test_pages_that_the_kernel_does_not_count_are_damage() -> None:
    kernel = PerCpuKernel()
    kernel.chunk(1, pages=8, populated=8, empty=8, used=0)
    with pytest.raises(CollectError, match="the per-CPU chunks have 14 pages, but the kernel counts 6"):
        percpu.left(kernel.prog)


def test_the_count_of_a_running_kernel_may_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = PerCpuKernel()
    kernel.chunk(1, pages=8, populated=8, empty=8, used=0)
    monkeypatch.setattr(percpu, "is_running", lambda prog: True)
    assert percpu.left(kernel.prog).populated_bytes == 8 * 4096 * UNITS


def test_an_area_without_its_pages_does_not_use_those_of_other_chunks() -> None:
    """An allocation that waits for its pages: of 5 pages it has 1."""
    kernel = PerCpuKernel()
    kernel.chunk(1, pages=8, populated=1, empty=0, used=5 * 4096)
    kernel.chunk(1, pages=8, populated=2, empty=2, used=0)
    kernel.number(kernel.count, 8, 6 + 3)
    chunks = percpu.left(kernel.prog)
    assert (chunks.populated_bytes, chunks.used_bytes) == (3 * 4096 * UNITS, 4096 * UNITS)


def test_a_list_in_a_circle_is_damage() -> None:
    kernel = PerCpuKernel()
    chunk = kernel.chunk(1, pages=8, populated=8, empty=8, used=0)
    kernel.words(chunk, chunk)
    with pytest.raises(CollectError, match="a list of struct pcpu_chunk does not end"):
        percpu.left(kernel.prog)


@pytest.mark.parametrize("variable", ["pcpu_nr_slots", "pcpu_nr_units"])
@pytest.mark.parametrize("value", [0, -1, 1 << 30])
def test_a_count_that_cannot_be_is_damage(variable: str, value: int) -> None:
    kernel = PerCpuKernel()
    kernel.number(kernel.variables[variable][1], 4, value)
    with pytest.raises(CollectError, match=variable):
        percpu.left(kernel.prog)


# As in v4.20 to v5.1; psi_group is empty without CONFIG_PSI.
MEMCG = """
struct percpu_ref { unsigned long percpu_count_ptr; };
struct cgroup_subsys_state { struct cgroup *cgroup; struct percpu_ref refcnt; };
struct mem_cgroup_stat_cpu { long count[10]; };
struct lruvec_stat { long count[5]; };
struct cgroup_rstat_cpu { long count[8]; };
struct psi_group { };
struct mem_cgroup_per_node { struct lruvec_stat *lruvec_stat_cpu; long lruvec_stat[5]; };
struct mem_cgroup {
    struct cgroup_subsys_state css; struct mem_cgroup_stat_cpu *stat_cpu; long stat[2];
    struct mem_cgroup_per_node *nodeinfo[0];
};
struct cgroup {
    struct cgroup_subsys_state self; struct cgroup_rstat_cpu *rstat_cpu; struct psi_group psi; void *effective;
};
"""
DYNAMIC = 0x3BD6F0600000
PAGES = 0x1234  # a counter in a struct, not a pointer
DEAD = 3  # __PERCPU_REF_ATOMIC_DEAD, which percpu_ref_exit() leaves


class MemcgKernel(SyntheticKernel):
    """A kernel with two nodes, to which memcgs are added.

    :param pointers: members with the counters of a memcg and of a node.
    """

    def __init__(self, declarations: str = MEMCG, pointers: tuple[str, str] = ("stat_cpu", "lruvec_stat_cpu")) -> None:
        super().__init__(declarations)
        self.pointers = pointers
        self.variable("nr_node_ids", "unsigned int", 2)
        self.variable("pcpu_nr_units", "int", UNITS)
        self.static = self.variable("__per_cpu_start", "char")
        self.variable("__per_cpu_end", "char")
        self.cache("kmalloc-64", 64)

    def cgroup(self, refcnt: int = DYNAMIC, rstat_cpu: int = DYNAMIC) -> int:
        address = self.slab("kmalloc-64")
        members = {"self__refcnt__percpu_count_ptr": refcnt, "rstat_cpu": rstat_cpu, "effective": 0x1234}
        return self.put(address, "struct cgroup", **members)

    def memcg(self, cgroup: int, online: bool = True, refcnt: int = DYNAMIC) -> Any:
        address = self.slab("kmalloc-64")
        members = {"css__cgroup": cgroup, "css__refcnt__percpu_count_ptr": refcnt}
        self.put(address, "struct mem_cgroup", **members)
        memcg_type, node_type = self.prog.type("struct mem_cgroup"), self.prog.type("struct mem_cgroup_per_node")
        self.words(address + 16, *3 * [PAGES])
        self.words(address + offsetof(memcg_type, self.pointers[0]), DYNAMIC)
        for nid in range(2):
            node = self.slab("kmalloc-64")
            self.words(node, *6 * [PAGES])
            if has_member(node_type, self.pointers[1]):
                self.words(node + offsetof(node_type, self.pointers[1]), DYNAMIC)
            self.words(address + offsetof(memcg_type, "nodeinfo") + 8 * nid, node)
        return SimpleNamespace(address=address, online=online)


MEMCG_BYTES = 8 + 80 + 2 * 40
CGROUP_BYTES = 8 + 64


def test_a_memcg_has_its_allocations_and_those_of_its_cgroup() -> None:
    kernel = MemcgKernel()
    memcg = kernel.memcg(kernel.cgroup())
    assert percpu.memcgs(kernel.prog, [memcg]) == ((MEMCG_BYTES + CGROUP_BYTES) * UNITS, 0, 0)


@pytest.mark.parametrize(
    ("node_members", "node_pointer", "node_bytes"),
    [("struct lruvec_stat *lruvec_stat; long lruvec[5];", "lruvec_stat", 40), ("long lruvec[6];", "none", 0)],
    ids=["v4.13", "before v4.13"],
)
def test_counters_by_their_older_names(node_members: str, node_pointer: str, node_bytes: int) -> None:
    """Before v4.16, with the names that later are those of arrays; before v4.13 nodes have none."""
    declarations = MEMCG.replace(
        "struct mem_cgroup_stat_cpu *stat_cpu; long stat[2];", "struct mem_cgroup_stat_cpu *stat;"
    )
    declarations = declarations.replace("struct lruvec_stat *lruvec_stat_cpu; long lruvec_stat[5];", node_members)
    kernel = MemcgKernel(declarations, ("stat", node_pointer))
    memcg = kernel.memcg(kernel.cgroup())
    expected = (8 + 80 + 2 * node_bytes + CGROUP_BYTES) * UNITS
    assert percpu.memcgs(kernel.prog, [memcg]) == (expected, 0, 0)


def test_a_removed_memcg_has_no_counter_of_references() -> None:
    kernel = MemcgKernel()
    memcg = kernel.memcg(kernel.cgroup(refcnt=DEAD), online=False, refcnt=DEAD)
    assert percpu.memcgs(kernel.prog, [memcg]) == (0, (80 + 2 * 40 + 64) * UNITS, 0)


def test_a_counter_of_references_that_is_not_per_cpu_any_more_has_its_memory_until_it_is_freed() -> None:
    kernel = MemcgKernel()
    memcg = kernel.memcg(kernel.cgroup(refcnt=DYNAMIC | DEAD))
    assert percpu.memcgs(kernel.prog, [memcg]) == ((MEMCG_BYTES + CGROUP_BYTES) * UNITS, 0, 0)


def test_static_variables_are_not_allocations() -> None:
    kernel = MemcgKernel()
    memcg = kernel.memcg(kernel.cgroup(rstat_cpu=kernel.static))
    assert percpu.memcgs(kernel.prog, [memcg]) == ((MEMCG_BYTES + 8) * UNITS, 0, 0)


@pytest.mark.parametrize("order", [1, -1])
def test_a_cgroup_of_two_memcgs_is_counted_once_with_the_online_one(order: int) -> None:
    kernel = MemcgKernel()
    cgroup = kernel.cgroup()
    memcg_list = [kernel.memcg(cgroup), kernel.memcg(cgroup, online=False)][::order]
    assert percpu.memcgs(kernel.prog, memcg_list) == ((MEMCG_BYTES + CGROUP_BYTES) * UNITS, MEMCG_BYTES * UNITS, 0)


FORM = """
struct cgroup_root { int hierarchy_id; };
struct cgroup_subsys_state { struct cgroup *cgroup; };
struct perf_cgroup { struct cgroup_subsys_state css; };
struct psi_group_cpu { int tasks[4]; };
struct psi_group { %s };
struct mem_cgroup { struct mem_cgroup_per_node *nodeinfo[0]; };
struct cgroup { struct cgroup_root *root; struct cgroup_subsys_state *subsys[2]; %s };
"""
BY_POINTER = ("struct psi_group_cpu *pcpu;", "struct psi_group *psi;")  # since v6.0
EMBEDDED = ("struct psi_group_cpu *pcpu;", "struct psi_group psi;")
WITHOUT_CONFIG_PSI = ("", "struct psi_group psi;")
BEFORE_V4_20 = ("", "")


@pytest.mark.parametrize(
    ("psi", "words", "hierarchy", "expected"),
    [
        (BY_POINTER, [0, DYNAMIC, DYNAMIC], 0, (True, True, False)),
        (BY_POINTER, [0, DYNAMIC, 0], 0, (False, True, False)),
        (EMBEDDED, [0, DYNAMIC, DYNAMIC], 0, (True, True, False)),
        (EMBEDDED, [0, DYNAMIC, 0], 0, (False, True, False)),
        (EMBEDDED, [0, 0, DYNAMIC], 3, (True, False, True)),
        (WITHOUT_CONFIG_PSI, [0, DYNAMIC], 0, (False, True, False)),
        (BEFORE_V4_20, [0, 0], 3, (True, False, True)),
    ],
)
def test_pointers_show_what_cgroups_have(
    psi: tuple[str, str], words: list[int], hierarchy: int, expected: tuple[bool, bool, bool]
) -> None:
    """subsys[1], of perf_event, and the psi_group of cgroups that are not the root. One was freed and reused."""
    kernel = SyntheticKernel(FORM % psi)
    kernel.variable("nr_node_ids", "unsigned int", 1)
    kernel.cache("kmalloc-64", 64)
    constant(kernel.prog, "perf_event_cgrp_id", 1)
    cgroup_root = kernel.put(kernel.slab("kmalloc-64"), "struct cgroup_root", hierarchy_id=hierarchy)
    memcg_list = []
    reused_words = [0 if word else DYNAMIC for word in words]
    for cgroup_words in ([0, 0, 0], words, reused_words, words):
        cgroup = kernel.slab("kmalloc-64")
        kernel.words(cgroup, cgroup_root, *cgroup_words)
        parent = memcg_list[0] if memcg_list else None
        memcg_list.append(SimpleNamespace(cgroup=cgroup, parent=parent, online=True))
    pointers = memcgs.Pointers(kernel.prog, percpu.pointer_paths(kernel.prog))
    assert percpu.cgroup_form(kernel.prog, memcg_list, pointers) == expected
