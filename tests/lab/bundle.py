"""Make the cores of the tests: boot a shape, record the truth about it, and reduce its core to a small one."""

from __future__ import annotations

import contextlib
import lzma
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
from pipeline.collector.walk import transient_objects
from tests.lab import boot, kdump, truth
from tests.lab.kernels import Kernel, LabError
from tests.lab.reduce import PAGE, FullCore, SmallCore
from tests.lab.shapes import Shape

VMCORES = Path(__file__).parents[1] / "vmcores"
KDUMPS = Path(__file__).parents[1] / "kdumps"
INCIDENTAL_COLUMNS = ("reads", "read_bytes", "peak_rss_bytes", "core_id")
"""Columns of the table targets that depend on the file's format and its reader, not on the kernel."""


def bundle(shape: Shape, guest_kernel: Kernel, scratch: Path) -> Path:
    """Rebuild a shape's folder with truth/ and vmcore in VMCORES, or vmcore.xz in KDUMPS if the shape has `dump`.

    It replaces the old one when it is complete.

    :param scratch: folder for the full core, which is as large as the guest's memory and is removed afterwards.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{shape.name}.") as folder:
        full, new = Path(folder) / "full", Path(folder) / "new"
        step(f"{shape.name}: boot {guest_kernel.release}, {shape.nodes} nodes, {shape.memory_mb} MB")
        if shape.dump:
            kdump.take_core(shape, guest_kernel, full, shape.dump)
        else:
            boot.take_core(shape, guest_kernel, full)
        shutil.copytree(full / "truth", new / "truth")
        step(f"{shape.name}: read the full core with drgn and DWARF, and with crash")
        truth.write(full / "vmcore", guest_kernel, new / "truth", run_references=shape.has_references)
        if shape.dump:
            core = full / "kdump/vmcore"
            (new / "vmcore.xz").write_bytes(lzma.compress(core.read_bytes(), preset=9))
        else:
            step(f"{shape.name}: keep the pages that an audit reads")
            core = new / "vmcore"
            small_core(full / "vmcore", guest_kernel).write_kdump(core)
            for system_map in full.glob("System.map-*"):
                (new / system_map.name).write_text(small_map(full / "vmcore", system_map))
        if audit(core) != audit(full / "vmcore"):
            raise LabError(f"{shape.name}: the audit of the bundled core differs from that of the full core")
        bundled = (KDUMPS if shape.dump else VMCORES) / shape.name
        shutil.rmtree(bundled, ignore_errors=True)
        bundled.parent.mkdir(exist_ok=True)
        shutil.move(new, bundled)
    return bundled


def small_core(full: Path, guest_kernel: Kernel) -> SmallCore:
    """The small core with the pages that the collector, and the tests of drgn's helpers, read without debug info."""
    core = FullCore(full)
    frames = core.frames_read_by(lambda prog: examine(kernel.with_types(prog, str(full), guest_kernel.vmlinux)))
    if b"SYMBOL(kallsyms_names)=" in core.vmcoreinfo:
        return core.small(frames | core.frames_read_by(lambda prog: examine(kernel.with_types(prog, str(full)))))
    # Before v6.0 the collector searches the image for the symbol table; the pages that it skips may be missing.
    ranges = image_ranges(kernel.with_types(core.program(), str(full), guest_kernel.vmlinux).prog)
    return core.small(
        frames | core.frames_read_by(lambda prog: [prog.read(start, end - start) for start, end in ranges])
    )


def small_map(core: Path, system_map: Path) -> str:
    """The lines of a core's System.map for the symbols that examine() looks up, their ends, and some functions.

    The functions are those of truth/kallsyms. By them the collector checks that the map belongs to the core.
    """
    names = {"__start_BTF", "__stop_BTF", *(core.parent / "truth/kallsyms").read_text().split()[2::3]}
    addresses = set()

    def record(prog: Program, name: str | None, address: int | None, find_one: bool) -> list[Symbol]:
        if address is None:
            names.add(str(name))
        else:
            addresses.add(address)
        return []

    opened_kernel = kernel.open_kernel(str(core))
    opened_kernel.prog.register_symbol_finder("record", record, enable_index=0)
    examine(opened_kernel)
    names.update(symbol.name for address in list(addresses) for symbol in opened_kernel.prog.symbols(address))
    rows = [line.split() for line in system_map.read_text().splitlines()]
    ends, start = set(), None
    for address, _, name in rows:
        if start and address != start:
            ends.add(name)
        start = address if name in names else None
    return "".join(f"{' '.join(row)}\n" for row in rows if row[2] in names | ends)


def examine(opened_kernel: kernel.Kernel) -> None:
    """Read all that belongs in the small core: an audit, the slab caches, some slab objects, the memcgs' paths.

    An audit of a lazy kernel does not read the host's root, but the tests estimate that kernel too.
    """
    snapshot.take(opened_kernel)
    # Without the charged objects it looks for items on all lists.
    snapshot.take(opened_kernel, scan_charges=False)
    prog = opened_kernel.prog
    transient_objects.host_root(prog)
    for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_()):
        slab_object_info(prog, css)
        cgroup_path(css.cgroup)
    for cache in for_each_slab_cache(prog):
        cache.name.string_()
        # drgn 0.3.0 follows the NULL pointer that a cache has for a possible node without memory.
        with contextlib.suppress(FaultError):
            slab_cache_usage(cache)


def image_ranges(prog: Program) -> list[tuple[int, int]]:
    """First and end addresses of the parts of a kernel image before v6.0 that the collector needs.

    These are the text's first page, by which the collector sees whether the core was filtered; the symbol table, from
    kallsyms_offsets to kallsyms_token_index, 256 u16; and the BTF.
    """

    def address(name: str) -> int:
        return prog.symbol(name).address

    return [
        (address("_stext"), address("_stext") + PAGE),
        (address("kallsyms_offsets"), address("kallsyms_token_index") + 512),
        (address("__start_BTF"), address("__stop_BTF")),
    ]


def audit(core: Path) -> dict[str, Any]:
    """The rows of an audit of a core without debug info, by table, without INCIDENTAL_COLUMNS."""
    tables = snapshot.take(kernel.open_kernel(str(core))).tables
    rows = {table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
    for column in INCIDENTAL_COLUMNS:
        del rows["targets"][0][column]
    return rows


def step(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)
