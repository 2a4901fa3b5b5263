"""Makes the cores that the tests use: boots a shape, notes the truth about it, and keeps a small core."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drgn import FaultError, Program, Symbol
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.slab import for_each_slab_cache, slab_cache_usage, slab_object_info

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from pipeline.collector.model import estimate
from tests.lab import boot, truth
from tests.lab.kernels import Kernel, LabError
from tests.lab.reduce import PAGE, FullCore, SmallCore
from tests.lab.shapes import Shape

VMCORES = Path(__file__).parents[1] / "vmcores"
COSTS = ("reads", "read_bytes", "peak_rss_bytes")
"""Columns of targets that depend on the file's format and its reader, not on the kernel."""


def bundle(shape: Shape, built: Kernel, scratch: Path) -> Path:
    """Make VMCORES/`shape.name` anew, vmcore and truth/; an old one is replaced only by a whole new one.

    :param scratch: folder for the full core (as large as the guest's memory), which is gone in the end.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{shape.name}.") as folder:
        full, new = Path(folder) / "full", Path(folder) / "new"
        step(f"{shape.name}: boot {built.release}, {shape.nodes} nodes, {shape.memory_mb} MB")
        boot.take_core(shape, built, full)
        shutil.copytree(full / "truth", new / "truth")
        step(f"{shape.name}: read the full core with drgn and DWARF, and with crash")
        truth.write(full / "vmcore", built, new / "truth", walked=shape.walked)
        step(f"{shape.name}: keep the pages of an audit")
        small_core(full / "vmcore", built).write_kdump(new / "vmcore")
        for system_map in full.glob("System.map-*"):
            (new / system_map.name).write_text(small_map(full / "vmcore", system_map))
        if audit(new / "vmcore") != audit(full / "vmcore"):
            raise LabError(f"{shape.name}: the audit of the small core differs from that of the full core")
        shutil.rmtree(VMCORES / shape.name, ignore_errors=True)
        VMCORES.mkdir(exist_ok=True)
        shutil.move(new, VMCORES / shape.name)
    return VMCORES / shape.name


def small_core(full: Path, built: Kernel) -> SmallCore:
    """The small core with what the collector, and the tests of drgn's helpers, read without debug info."""
    core = FullCore(full)
    frames = core.touched(lambda prog: examine(kernel.with_types(prog, str(full), built.vmlinux)))
    if b"SYMBOL(kallsyms_names)=" in core.vmcoreinfo:
        return core.small(frames | core.touched(lambda prog: examine(kernel.with_types(prog, str(full)))))
    # Before v6.0 the collector searches the image for the symbol table; what it steps over may be missing.
    ranges = sought(kernel.with_types(core.program(), str(full), built.vmlinux).prog)
    return core.small(frames | core.touched(lambda prog: [prog.read(start, end - start) for start, end in ranges]))


def small_map(core: Path, whole: Path) -> str:
    """Of the System.map beside a core the lines that examine() asks for, the end of each symbol, and some functions.

    The functions are those of truth/kallsyms, on which the collector can see that the map is the core's.
    """
    names = {"__start_BTF", "__stop_BTF", *(core.parent / "truth/kallsyms").read_text().split()[2::3]}
    addresses = set()

    def note(prog: Program, name: str | None, address: int | None, one: bool) -> list[Symbol]:
        if address is None:
            names.add(str(name))
        else:
            addresses.add(address)
        return []

    opened = kernel.open_kernel(str(core))
    opened.prog.register_symbol_finder("note", note, enable_index=0)
    examine(opened)
    names.update(symbol.name for address in list(addresses) for symbol in opened.prog.symbols(address))
    rows = [line.split() for line in whole.read_text().splitlines()]
    ends, start = set(), None
    for address, _, name in rows:
        if start and address != start:
            ends.add(name)
        start = address if name in names else None
    return "".join(f"{' '.join(row)}\n" for row in rows if row[2] in names | ends)


def examine(opened: kernel.Kernel) -> None:
    """Read what has to be in the small core: an audit, the slab caches, some slab objects, the memcgs' paths.

    An audit of a lazy kernel does not ask for the host's root, but the tests estimate that kernel too.
    """
    snapshot.take(opened)
    prog = opened.prog
    estimate.host_root(prog)
    for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_()):
        slab_object_info(prog, css)
        cgroup_path(css.cgroup)
    for cache in for_each_slab_cache(prog):
        cache.name.string_()
        # drgn 0.3.0 follows the NULL that a cache has for a possible node without memory.
        with contextlib.suppress(FaultError):
            slab_cache_usage(cache)


def sought(prog: Program) -> list[tuple[int, int]]:
    """What the collector needs of the kernel image: first and end address of its parts, before v6.0.

    The text's first page: the collector looks there whether the core was filtered. Of the symbol table kallsyms_offsets
    is the first and kallsyms_token_index, 256 u16, the last. The BTF.
    """

    def at(name: str) -> int:
        return prog.symbol(name).address

    return [
        (at("_stext"), at("_stext") + PAGE),
        (at("kallsyms_offsets"), at("kallsyms_token_index") + 512),
        (at("__start_BTF"), at("__stop_BTF")),
    ]


def audit(core: Path) -> dict[str, Any]:
    """The rows of an audit of a core without debug info, but for COSTS."""
    tables = snapshot.take(kernel.open_kernel(str(core))).tables
    rows = {table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
    for column in COSTS:
        del rows["targets"][0][column]
    return rows


def step(text: str) -> None:
    """One line of progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)
