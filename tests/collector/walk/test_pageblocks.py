"""Pageblocks by mobility, of sections laid out by hand as sparse_init_nid() lays them out."""

from __future__ import annotations

import struct

import pytest
from drgn import Program, offsetof

from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from pipeline.collector.walk import pageblocks
from tests.collector.conftest import CORES
from tests.collector.made import overlay

CORE = next(core for core in CORES if core.name == "deb510-n2")
"""x86_64: sections of 128 MB with 64 pageblocks of 512 pages, 4 bits each."""
USAGES = 0xFFFF888000000000 + (1 << 45)
"""Address of memory that the core lacks, for two struct mem_section_usage."""
UNMOVABLE, MOVABLE, RECLAIMABLE = range(3)
SKIP = 8
"""PB_migrate_skip, a flag of the compaction."""


@pytest.fixture
def prog() -> Program:
    """A core with other flags: of section 0 the first three pageblocks are not movable, of section 1 the last."""
    prog = kernel.open_kernel(str(CORE.path)).prog
    types = [UNMOVABLE, RECLAIMABLE, UNMOVABLE | SKIP] + 61 * [MOVABLE], 62 * [MOVABLE] + [MOVABLE | SKIP, RECLAIMABLE]
    usage_type = prog.type("struct mem_section_usage")
    usage_bytes = offsetof(usage_type, "pageblock_flags") + 32
    sections = prog["mem_section"][0]
    for number, section_types in enumerate(types):
        usage = USAGES + number * usage_bytes
        overlay(prog, sections[number].usage.address_, struct.pack("<Q", usage))
        flags = sum(block_type << 4 * block for block, block_type in enumerate(section_types))
        overlay(prog, usage, bytes(usage_bytes - 32) + flags.to_bytes(32, "little"))
    return prog


def test_ranges_are_split_by_mobility(prog: Program) -> None:
    ranges = pageblocks.ranges(prog, 2 << 15)
    assert list(ranges.fixed) == [0, 512, 1024, 65024]
    assert list(ranges.movable) == list(range(1536, 65024, 512))
    assert ranges.pages == 512


def test_a_size_that_does_not_divide_a_section_is_none(prog: Program) -> None:
    """Two structs that are further apart than one is long: 112 blocks of 4 bits do not fill a section."""
    overlay(prog, prog["mem_section"][0][1].usage.address_, struct.pack("<Q", USAGES + 72))
    with pytest.raises(LookupError):
        pageblocks.ranges(prog, 2 << 15)


def test_ranges_without_pageblocks_have_all_pages() -> None:
    assert list(pageblocks.split([(1, 1000), (4096, 4097)]).fixed) == [0, 512, 4096]
    with pytest.raises(CollectError, match="ranges"):
        pageblocks.split([(0, 1 << 35)])


def test_a_section_without_a_memmap_has_no_range(prog: Program) -> None:
    section = prog["mem_section"][0][1]
    overlay(prog, section.section_mem_map.address_, struct.pack("<Q", section.section_mem_map.value_() & ~2))
    with pytest.raises(LookupError):  # one section does not tell the size of a pageblock
        pageblocks.ranges(prog, 2 << 15)
