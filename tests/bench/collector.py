"""The collector on real cores: against plain drgn opening them, crash, and walks that read one list after the other.

Small: bundled cores, which have no vmlinux. Full: kernels that the lab boots for it, up to the commit message's server
(5 minutes, 12 GB of disk), and what the cost grows with. $DRGN_TOOLS names a checkout of oracle-samples/drgn-tools.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline.collector import budget
from tests.bench.measure import ROOT, Cost, Row, call, command, interleaved
from tests.lab.shapes import SHAPES, Shape

_SERVER = "bytedance"
_BASE = replace(SHAPES["deb510-n2"], memory_mb=384)
_GROWN = {
    "4 times the ids": replace(_BASE, memcgs=4 * _BASE.memcgs),
    "4 times the kept memcgs": replace(_BASE, kept=4 * _BASE.kept),
    "4 times the mounts": replace(_BASE, tmpfs=_BASE.tmpfs + 3 * 60),
    "twice the nodes": replace(_BASE, nodes=2 * _BASE.nodes),
    "4 times the files": replace(_BASE, files=4 * _BASE.files),
    "4 times the memory": replace(_BASE, memory_mb=4 * _BASE.memory_mb),
}
_SMALL, _LARGE = "382 ids, 65 superblocks", "24574 ids, 952 superblocks"
_OPEN = "import drgn, sys; prog = drgn.Program(); prog.set_core_dump(sys.argv[1]); prog['VMCOREINFO']"
_OPEN_WITH_DWARF = f"{_OPEN}; prog.load_debug_info(sys.argv[2:]); prog['super_blocks']; prog.type('struct list_lru')"
_QUESTIONS = "p memcg_nr_cache_ids\nlist -H super_blocks -o super_block.s_list | wc -l\nkmem -s kmalloc-32\nquit\n"
"""What the commit message of 5abc1e37afa0 asks crash."""


def run(full: bool) -> Iterator[Row]:
    """Yield the rows."""
    if not full:
        for name in ("deb510-n2", _SERVER):
            yield from _against_bare(ROOT / "tests/vmcores" / name / "vmcore", f"{name}, bundled")
        return
    from tests.lab import kernels
    from tests.lab.boot import take_core

    vmlinux = kernels.of("5.10", dwarf=True).vmlinux
    with tempfile.TemporaryDirectory() as scratch:

        def core(shape: Shape) -> Path:
            take_core(shape, kernels.of(shape.series), Path(scratch))
            return Path(scratch) / "vmcore"

        yield from _against_others(core(_BASE), str(vmlinux), _SMALL)
        usual = _audits(Path(scratch) / "vmcore")
        for what, shape in _GROWN.items():
            for options, took in _audits(core(shape)).items():
                name = f"{what}: inspect {options}".rstrip()
                yield Row(f"{name}, CPU time", took.cpu_s, "s", _SMALL, usual[options].cpu_s)
                yield Row(f"{name}, reads", _reads(took), "reads", _SMALL, _reads(usual[options]))
        yield from _against_others(core(SHAPES[_SERVER]), str(vmlinux), _LARGE)


def _against_bare(core: Path, name: str) -> Iterator[Row]:
    """Compare an audit of a core that no vmlinux is there for."""
    what = "drgn opening it, without types"
    ran = interleaved(3, audit=partial(_inspect, core), bare=partial(command, [sys.executable, "-c", _OPEN, core]))
    yield Row(f"{name}: inspect, CPU time", ran["audit"].cpu_s, "s", what, ran["bare"].cpu_s)
    if shutil.which("valgrind"):
        audit, opening = instructions(core)
        yield Row(f"{name}: instructions of the collector", audit / 1e6, "million", what, opening / 1e6)


def instructions(core: Path) -> tuple[int, int]:
    """Return how many instructions an audit takes, and drgn to open the core; by valgrind, busy or not."""
    counted = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    found = []
    for argv in (["-m", "pipeline.collector", core], ["-c", _OPEN, core]):
        ran = subprocess.run(
            [*counted, sys.executable, *argv],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(int(re.findall(r"I +refs: +([\d,]+)", ran.stderr)[-1].replace(",", "")))
    audit, opening = found
    return audit, opening


def _against_others(core: Path, vmlinux: str, name: str) -> Iterator[Row]:
    """Compare an audit without debug info with what others need, who have it."""
    plain = partial(command, [sys.executable, "-c", _OPEN_WITH_DWARF, core, vmlinux])
    ran = interleaved(5, plain=plain, audit=partial(_inspect, core, "--no-charged"), charged=partial(_inspect, core))
    opened, audit, charged = ran["plain"], ran["audit"], ran["charged"]
    what, opens = f"{name}: inspect --no-charged", "drgn opening it with DWARF"
    yield Row(what, audit.wall_s, "s", opens, opened.wall_s, "<= 2")
    yield Row(f"{what}, CPU time", audit.cpu_s, "s", opens, opened.cpu_s, "<= 2")
    yield Row(f"{what}, peak memory", audit.peak_rss_bytes / 2**20, "MiB", opens, opened.peak_rss_bytes / 2**20)
    yield Row(f"{name}: what the charged scan adds", charged.wall_s - audit.wall_s, "s", budget="<= 2")
    for stage, cpu_s in call(stages, str(core)).value.items():
        yield Row(f"{name}: CPU time of {stage}", 1000 * cpu_s, "ms")
    lists = json.loads(audit.value)["list_lru_one_objects"]
    for walker, path in (("one object at a time", None), ("drgn-tools' lists", os.environ.get("DRGN_TOOLS"))):
        if path is None and walker != "one object at a time":
            continue
        seen, took_s, reads = call(walk, str(core), vmlinux, path).value
        walker += "" if seen == lists else f", {seen:,} of {lists:,} lists"
        large = name == _LARGE
        yield Row(f"{name}: {walker}", took_s * lists / seen, "s", what, audit.wall_s, ">= 500" if large else None)
        reads *= lists / seen
        yield Row(f"{name}: {walker}", reads, "reads", what, _reads(audit), ">= 1000" if large else None)
    if shutil.which("crash"):
        asked = command(["crash", "-s", vmlinux, core], stdin=_QUESTIONS)
        if f"= {json.loads(audit.value)['memcg_nr_cache_ids']}\n" not in asked.value:
            raise RuntimeError(f"crash does not know memcg_nr_cache_ids: {asked.value}")
        yield Row(
            f"{name}: crash, asked the commit message's three questions", asked.wall_s, "s", "inspect", charged.wall_s
        )


def _audits(core: Path) -> dict[str, Cost]:
    """Return the cost of an audit by its options, the median of five."""
    jobs = {options: partial(_inspect, core, *options.split()) for options in ("--no-charged", "")}
    return interleaved(5, **jobs)


def _inspect(core: Path, *options: str) -> Cost:
    return command([sys.executable, "-m", "pipeline", "inspect", core, "--json", *options])


def _reads(audit: Cost) -> int:
    return int(json.loads(audit.value)["reads"])


def stages(core: str) -> dict[str, float]:
    """Audit a core in this process and return the CPU seconds of each part, by what it does."""
    start = time.process_time()
    from pipeline.collector import snapshot
    from pipeline.collector.access import kernel
    from pipeline.collector.walk import charges, containers, list_lrus, memcgs, superblocks

    took = {"starting Python with drgn": start, "importing the collector": time.process_time() - start}
    parts = {
        "opening the core": (kernel, "_attach"),
        "symbols": (kernel.kallsyms, "load"),
        "types": (kernel, "Btf"),
        "superblocks": (superblocks, "walk"),
        "memcgs": (memcgs, "walk"),
        "list_lrus": (list_lrus, "walk"),
        "owners of mounts": (containers, "of_superblocks"),
        "charged objects": (charges, "scan"),
    }

    def timed(what: str, function: Any, *args: Any, **options: Any) -> Any:
        before = time.process_time()
        try:
            return function(*args, **options)
        finally:
            took[what] = time.process_time() - before

    with contextlib.ExitStack() as patched:
        for what, (module, name) in parts.items():
            patched.enter_context(mock.patch.object(module, name, partial(timed, what, getattr(module, name))))
        snapshot.take(kernel.open_kernel(core))
    took["all else"] = time.process_time() - sum(took.values())
    return took


def walk(core: str, vmlinux: str, drgn_tools: str | None, most: int = 200_000) -> tuple[int, float, int]:
    """Look at the list_lrus one list after the other: as the reference does, or drgn-tools.

    :param drgn_tools: a checkout of it. :param most: lists to look at, about.
    :return: how many lists, seconds, read system calls; without those of opening the core.
    """
    import drgn
    from drgn.helpers.linux.list import list_count_nodes, list_for_each_entry

    from tests import reference

    def of_reference(lru: drgn.Object) -> int:
        return int(reference.list_lru(lru, {})["objects"])

    def of_drgn_tools(lru: drgn.Object) -> int:
        return len([list_count_nodes(one.list.address_of_()) for _, _, one in for_each_list(lru)])

    if drgn_tools:
        sys.path.insert(0, drgn_tools)
        for_each_list = importlib.import_module("drgn_tools.list_lru").list_lru_for_each_list
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    superblocks = list(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"))
    start, (reads, _), seen = time.perf_counter(), budget.reads(), 0
    for lru, _ in reference.list_lrus(prog, superblocks):
        seen += of_drgn_tools(lru) if drgn_tools else of_reference(lru)
        if seen >= most:
            break
    return seen, time.perf_counter() - start, budget.reads()[0] - reads
