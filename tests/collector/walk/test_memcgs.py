"""The walk over memcgs that come and go, and their pointers: each struct is read once, for all parts of an audit."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from drgn import Program, offsetof

from pipeline.collector.access import kernel as kernels
from pipeline.collector.access import memory
from pipeline.collector.walk import memcg_structs, memcgs, percpu, shrinker_infos
from tests.collector.conftest import CORES, Core
from tests.collector.made import SyntheticKernel, overlay

DECLARATIONS = """
struct css { long flags; void *parent; };
struct mem_cgroup { long id; struct css css; void *vmstats; long stat[2]; void *nodeinfo[0]; };
"""
CSS_RELEASED = 1 << 2
PATHS = {"struct mem_cgroup": ("vmstats", "css.parent", "vmstats_percpu")}


@pytest.fixture
def kernel() -> SyntheticKernel:
    kernel = SyntheticKernel(DECLARATIONS)
    kernel.cache("kmalloc-64", 64)
    kernel.variable("nr_node_ids", "unsigned int", 2)
    return kernel


def memcg(kernel: SyntheticKernel, number: int) -> int:
    """A memcg of 8 words, which have the numbers from 8 * number."""
    return kernel.words(kernel.slab("kmalloc-64"), *range(8 * number, 8 * number + 8))


def test_pointers_are_in_the_order_of_their_paths(kernel: SyntheticKernel) -> None:
    pointers = memcgs.Pointers(kernel.prog, PATHS)
    addresses = [memcg(kernel, 1), memcg(kernel, 2)]
    for paths, words in ((["vmstats", "css.parent"], (3, 2)), (["nodeinfo[1]", "vmstats"], (7, 3))):
        expected = {addresses[i]: [8 * (i + 1) + word for word in words] for i in range(2)}
        assert dict(pointers.each("struct mem_cgroup", addresses, paths)) == expected


def test_only_structs_that_were_not_read_are_read(kernel: SyntheticKernel) -> None:
    pointers = memcgs.Pointers(kernel.prog, PATHS)
    first, second = memcg(kernel, 1), memcg(kernel, 2)
    list(pointers.each("struct mem_cgroup", [first], ["vmstats"]))
    kernel.words(first, *[0] * 8)
    values = dict(pointers.each("struct mem_cgroup", [first, second], ["css.parent"]))
    assert values == {first: [8 + 2], second: [16 + 2]}


def test_structs_are_read_in_bulk(kernel: SyntheticKernel) -> None:
    """64 lie on a page, and the pages behind one another."""
    addresses = [memcg(kernel, number) for number in range(3000)]
    pointers = memcgs.Pointers(kernel.prog, PATHS)
    kernel.reads = 0
    values = dict(pointers.each("struct mem_cgroup", addresses, ["vmstats"]))
    assert [values[address] for address in addresses] == [[8 * number + 3] for number in range(3000)]
    assert kernel.reads <= 3


def test_an_audit_reads_each_struct_once(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    prog = core.kernel.prog
    memcg_list = memcgs.walk(prog)
    parts = (shrinker_infos.count, memcg_structs.count, percpu.memcgs)
    expected = [count(prog, memcg_list) for count in parts]
    addresses: list[int] = []

    def read_each(prog: object, some_addresses: list[int], size: int) -> dict[int, bytes]:
        addresses.extend(some_addresses)
        return memory.read_each(prog, some_addresses, size)

    monkeypatch.setattr(memcgs, "read_each", read_each)
    tables = (shrinker_infos.POINTERS, memcg_structs.POINTERS, percpu.pointer_paths(prog))
    pointers = memcgs.Pointers(prog, *tables)
    assert [count(prog, memcg_list, pointers) for count in parts] == expected
    assert len(addresses) == len(set(addresses)) > len(memcg_list)


def test_a_path_longer_than_path_max_is_its_end_behind_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cgroups can be nested to any depth; PATH_MAX is 4,096 bytes."""
    core = next(core for core in CORES if core.name == "deb510-n1")
    monkeypatch.setattr(memcgs, "c_strings", lambda prog, addresses: {name: b"%4000d" % name for name in addresses})
    full_paths: dict[memcgs.Memcg, bytes] = {}
    is_cut = set()
    for memcg in memcgs.walk(core.kernel.prog):
        full_paths[memcg] = full_paths[memcg.parent] + memcg.path[-4001:] if memcg.parent else b""
        path = full_paths[memcg] or b"/"
        assert memcg.path == (path if len(path) <= 4096 else b"//..." + path[-4096:])
        is_cut.add(len(path) > 4096)
    assert is_cut == {False, True}


@pytest.mark.parametrize(
    ("member", "value"),
    [("css.flags", CSS_RELEASED), ("css.serial_nr", 2**40)],
    ids=["released", "freed, and another memcg in its place"],
)
def test_a_memcg_that_goes_away_before_its_name_is_read_is_left_out(
    core: Core, monkeypatch: pytest.MonkeyPatch, member: str, value: int
) -> None:
    prog = kernels.open_kernel(str(core.path)).prog
    everything = memcgs.walk(prog)
    monkeypatch.setattr(memcgs, "is_running", lambda prog: True)
    assert [memcg.path for memcg in memcgs.walk(prog)] == [memcg.path for memcg in everything]
    gone = next(memcg for memcg in everything[1:] if memcg not in {child.parent for child in everything})

    def names_and_changes(prog: Program, addresses: Iterable[int]) -> dict[int, bytes]:
        offset = offsetof(prog.type("struct mem_cgroup"), member)
        size = 4 if member == "css.flags" else 8
        overlay(prog, gone.address + offset, value.to_bytes(size, "little"))
        return dict.fromkeys(addresses, b"of another")

    monkeypatch.setattr(memcgs, "c_strings", names_and_changes)
    assert {memcg.address for memcg in memcgs.walk(prog)} == {memcg.address for memcg in everything} - {gone.address}
