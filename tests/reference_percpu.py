"""Per-CPU memory by the bitmaps of its chunks, bit by bit, and by every word of the memcgs' structs.

Like tests/reference.py this is slow and simple: with DWARF, one object at a time, and nothing from pipeline/. It knows
no member that points to per-CPU memory: a word that is the address of an allocation is a pointer to it. The boundaries
between allocations (bound_map) give their sizes.

    python -m tests.reference_percpu VMCORE VMLINUX > percpu.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from drgn import Object, Program, cast, container_of, sizeof
from drgn.helpers.linux.cgroup import css_for_each_descendant_pre
from drgn.helpers.linux.list import list_for_each_entry

from tests.reference import CSS_ONLINE, dumps, has_member, nr_node_ids

MIN_ALLOC_SIZE = 4
"""PCPU_MIN_ALLOC_SIZE: the bytes that a bit stands for."""


def read(prog: Program) -> dict[str, Any]:
    """Read the bytes of all chunks but the first, and those of the allocations of memcgs, in all units."""
    page_bits = prog["PAGE_SIZE"].value_() // MIN_ALLOC_SIZE
    units = prog["pcpu_nr_units"].value_()
    sizes: dict[int, int] = {}
    populated_pages = allocated_bits = used_pages = 0
    for chunk in chunks(prog):
        pages = chunk.nr_pages.value_()
        allocated = bits(chunk.alloc_map, pages * page_bits)
        sizes.update(allocations(chunk, allocated))
        if chunk != prog["pcpu_first_chunk"]:
            populated_pages += sum(bits(chunk.populated, pages))
            allocated_bits += sum(allocated)
            used_pages += sum(any(allocated[page * page_bits : (page + 1) * page_bits]) for page in range(pages))
    memcg_bytes = {True: 0, False: 0}
    for is_online, address in memcg_allocations(prog, sizes):
        memcg_bytes[is_online] += sizes.pop(address, 0)
    return {
        "populated_bytes": populated_pages * prog["PAGE_SIZE"].value_() * units,
        "used_bytes": allocated_bits * MIN_ALLOC_SIZE * units,
        "partly_used_bytes": used_pages * prog["PAGE_SIZE"].value_() * units,
        "online_memcg_bytes": memcg_bytes[True] * units,
        "dying_memcg_bytes": memcg_bytes[False] * units,
    }


def chunks(prog: Program) -> Iterator[Object]:
    """Yield each ``struct pcpu_chunk *`` that is on a list."""
    lists = prog["pcpu_chunk_lists"]
    types = prog["PCPU_NR_CHUNK_TYPES"].value_() if "PCPU_NR_CHUNK_TYPES" in prog else 1
    for i in range(types * prog["pcpu_nr_slots"].value_()):
        yield from list_for_each_entry("struct pcpu_chunk", lists[i].address_of_(), "list")


def bits(bitmap: Object, count: int) -> list[int]:
    """The bits of an array of unsigned long."""
    return [bitmap[i // 64].value_() >> i % 64 & 1 for i in range(count)]


def allocations(chunk: Object, allocated: list[int]) -> Iterator[tuple[int, int]]:
    """Yield each allocation's address, as pointers to per-CPU memory have it, and its size."""
    prog = chunk.prog_
    boundaries = bits(chunk.bound_map, len(allocated) + 1)
    base = chunk.base_addr.value_() - prog["pcpu_base_addr"].value_() + prog.symbol("__per_cpu_start").address
    start = 0
    for end in range(1, len(allocated) + 1):
        if boundaries[end] or end == len(allocated) or allocated[end] != allocated[start]:
            if allocated[start]:
                yield base + start * MIN_ALLOC_SIZE & (1 << 64) - 1, (end - start) * MIN_ALLOC_SIZE
            start = end


def memcg_allocations(prog: Program, sizes: dict[int, int]) -> Iterator[tuple[bool, int]]:
    """Yield the allocations that the structs of each memcg point to, and whether it is online.

    An online memcg comes before the dying ones: one of these may have the same cgroup.
    """
    memcgs = [
        container_of(css, "struct mem_cgroup", "css")
        for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_())
    ]
    for memcg in sorted(memcgs, key=lambda memcg: not memcg.css.flags & CSS_ONLINE):
        for pointer in filter(None, structs(memcg)):
            for word in Object(
                prog, prog.array_type(prog.type("unsigned long"), sizeof(pointer.type_.type) // 8), address=pointer
            ):
                # percpu_ref marks its state in two low bits.
                yield bool(memcg.css.flags & CSS_ONLINE), word.value_() & ~3


def structs(memcg: Object) -> Iterator[Object]:
    """Yield pointers to the structs of a memcg and its cgroup."""
    prog = memcg.prog_
    cgroup = memcg.css.cgroup
    yield from (memcg, cgroup)
    nodes = [memcg.nodeinfo[nid] for nid in range(nr_node_ids(prog)) if memcg.nodeinfo[nid]]
    yield from nodes
    yield from (holder.objcg for holder in (memcg, *nodes) if has_member(holder, "objcg"))
    if cgroup.psi.type_.primitive is None and cgroup.psi.type_.kind.name == "POINTER":
        yield cgroup.psi
    yield cast("struct perf_cgroup *", cgroup.subsys[prog["perf_event_cgrp_id"]])


if __name__ == "__main__":
    core = Program()
    core.set_core_dump(sys.argv[1])
    core.load_debug_info([sys.argv[2]])
    print(dumps(read(core)), end="")
