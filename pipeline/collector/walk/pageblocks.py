"""Pageblocks: the parts of memory, of 2 MB on most machines, that have pages of one mobility.

Slabs of dentries, inodes and xa_nodes are not movable. The kernel puts them into movable pageblocks only where it has
no other free page (``steal_suitable_fallback()``), so nearly all of them are in a small part of memory.
"""

import re
from array import array
from collections import namedtuple

from drgn import offsetof, sizeof

from ..access.memory import Members, read_each, words
from ..status import CollectError

# section_mem_map has this bit if the section has a memmap.
_SECTION_HAS_MEM_MAP = 1 << 1
# The bits of a pageblock that are its enum migratetype.
_MIGRATETYPE_MASK = (1 << 3) - 1
# Pages of a range without pageblocks, as many as a pageblock has on most machines: few enough for a random sample of
# many ranges, 32 KB of the memmap.
_RANGE_PAGES = 1 << 9
# Bounds the memory for ranges: 128 MB, for 32 TB of memory in ranges of 2 MB.
_MAX_RANGES = 1 << 24
_WORD_BITS = 64


class Ranges(namedtuple("Ranges", "fixed movable pages")):
    """Ranges of page frame numbers.

    fixed, movable: arrays of the starts of all pageblocks that are not movable, and of those that are. pages: of each.
    """

    __slots__ = ()


def ranges(prog, end_pfn):
    """Return the Ranges of memory below a page frame number, by its pageblocks.

    :raises LookupError: this kernel does not tell where it has its pageblocks. VMCOREINFO has the size of a section
        since commit 4f5aecdff25f ("crash_core, vmcoreinfo: append 'SECTION_SIZE_BITS' to vmcoreinfo") (in v5.14 and in
        stable releases). struct mem_section has the flags of its pageblocks in struct mem_section_usage since commit
        f1eca35a0dc7 ("mm/sparsemem: introduce struct mem_section_usage") (in v5.3).
    """
    section_bits = re.search(rb"^NUMBER\(SECTION_SIZE_BITS\)=(\d+)$", prog["VMCOREINFO"].string_(), re.MULTILINE)
    if not section_bits:
        raise LookupError("VMCOREINFO lacks SECTION_SIZE_BITS")
    section_pages = (1 << int(section_bits.group(1))) // prog["PAGE_SIZE"].value_()
    usages = _usages(prog, -(-end_pfn // section_pages))
    addresses = sorted(usages.values())
    # The structs of a node's sections follow one another.
    usage_bytes = min((b - a for a, b in zip(addresses, addresses[1:])), default=0)
    flags_offset = offsetof(prog.type("struct mem_section_usage"), "pageblock_flags")
    block_bits = prog.constant("NR_PAGEBLOCK_BITS").value_()
    blocks = 8 * (usage_bytes - flags_offset) // block_bits
    if not 0 < blocks <= section_pages or section_pages % blocks:
        raise LookupError("the size of pageblocks is unknown")
    block_pages = section_pages // blocks
    movable = prog.constant("MIGRATE_MOVABLE").value_()
    flags_by_address = read_each(prog, addresses, usage_bytes)
    _check_count(len(usages) * blocks)
    by_mobility = array("Q"), array("Q")
    for section, address in sorted(usages.items()):
        flag_words = words(prog, flags_by_address[address][flags_offset:])
        for block in range(blocks):
            word, bit = divmod(block * block_bits, _WORD_BITS)
            is_movable = flag_words[word] >> bit & _MIGRATETYPE_MASK == movable
            by_mobility[is_movable].append(section * section_pages + block * block_pages)
    return Ranges(*by_mobility, pages=block_pages)


def _usages(prog, sections):
    """Return the address of the ``struct mem_section_usage`` of each section that has a memmap, by its number."""
    mem_section = Members(prog, "struct mem_section", mem_map="section_mem_map", usage="usage")
    section_bytes = sizeof(prog.type("struct mem_section"))
    sections_per_root = prog["PAGE_SIZE"].value_() // section_bytes
    root_table = prog["mem_section"]
    roots = [root_table[i].value_() for i in range(-(-sections // sections_per_root))]
    data = read_each(prog, filter(None, roots), sections_per_root * section_bytes)
    usages = {}
    for i, root in enumerate(roots):
        for j in range(sections_per_root if root else 0):
            section = mem_section.decode(data[root], j * section_bytes)
            if section.mem_map & _SECTION_HAS_MEM_MAP and section.usage:
                usages[i * sections_per_root + j] = section.usage
    return usages


def split(spans):
    """Return the Ranges of page frame numbers of which no mobility is known. The last of a span can reach beyond it.

    :raises CollectError: ``bad_core``: there are too many.
    """
    spans = [(start - start % _RANGE_PAGES, end) for start, end in spans]
    _check_count(sum(end - start for start, end in spans) // _RANGE_PAGES)
    starts = array("Q")
    for start, end in spans:
        starts.extend(range(start, end, _RANGE_PAGES))
    return Ranges(starts, array("Q"), pages=_RANGE_PAGES)


def _check_count(ranges):
    if ranges > _MAX_RANGES:
        raise CollectError("bad_core", "memory has %d ranges of pages" % ranges)
