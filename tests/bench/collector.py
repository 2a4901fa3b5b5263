"""The collector on real cores, compared with drgn that only opens them, crash, and walks that read list by list.

The small size uses bundled cores, which have no vmlinux. The full size boots kernels in the lab, up to the commit
message's server (5 minutes, 12 GB of disk), and varies a small host, which shows what the cost grows with. $DRGN_TOOLS
names a checkout of oracle-samples/drgn-tools.
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
from tests.bench.measure import ROOT, Cost, Row, call, run_command, run_in_turn
from tests.lab.shapes import SHAPES, Shape

_SERVER = "bytedance"
_BASE = replace(SHAPES["deb510-n2"], memory_mb=384)
_VARIATIONS = {
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
_CRASH_COMMANDS = "p memcg_nr_cache_ids\nlist -H super_blocks -o super_block.s_list | wc -l\nkmem -s kmalloc-32\nquit\n"
"""The commands for crash in the message of commit 5abc1e37afa0."""


def run(full: bool) -> Iterator[Row]:
    """Yield the rows: for booted kernels if `full`, else for two bundled cores."""
    if not full:
        for name in ("deb510-n2", _SERVER):
            yield from _compare_with_bare_drgn(ROOT / "tests/vmcores" / name / "vmcore", f"{name}, bundled")
        return
    from tests.lab import kernels
    from tests.lab.boot import take_core

    vmlinux = kernels.debian_kernel("5.10", dwarf=True).vmlinux
    with tempfile.TemporaryDirectory() as scratch:

        def core(shape: Shape) -> Path:
            take_core(shape, kernels.debian_kernel(shape.series), Path(scratch))
            return Path(scratch) / "vmcore"

        yield from _compare_with_debug_info(core(_BASE), str(vmlinux), _SMALL)
        base_costs = _audits(Path(scratch) / "vmcore")
        for variation, shape in _VARIATIONS.items():
            for options, cost in _audits(core(shape)).items():
                name = f"{variation}: inspect {options}".rstrip()
                yield Row(f"{name}, CPU time", cost.cpu_s, "s", _SMALL, base_costs[options].cpu_s)
                yield Row(f"{name}, reads", _reads(cost), "reads", _SMALL, _reads(base_costs[options]))
        yield from _compare_with_debug_info(core(SHAPES[_SERVER]), str(vmlinux), _LARGE)


def _compare_with_bare_drgn(core: Path, name: str) -> Iterator[Row]:
    """Compare an audit with drgn that only opens the core, without a vmlinux."""
    drgn_name = "drgn opening the core, without types"
    bare = partial(run_command, [sys.executable, "-c", _OPEN, core])
    costs = run_in_turn(3, audit=partial(_inspect, core), bare=bare)
    yield Row(f"{name}: inspect, CPU time", costs["audit"].cpu_s, "s", drgn_name, costs["bare"].cpu_s)
    if shutil.which("valgrind"):
        audit_count, open_count = instructions(core)
        yield Row(f"{name}: instructions of the collector", audit_count / 1e6, "million", drgn_name, open_count / 1e6)


def instructions(core: Path) -> tuple[int, int]:
    """Count the instructions of an audit, and those of drgn that only opens the core.

    valgrind counts them, so the load of the machine does not matter.
    """
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    counts = []
    for argv in (["-m", "pipeline.collector", core], ["-c", _OPEN, core]):
        process = subprocess.run(
            [*valgrind, sys.executable, *argv],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=True,
            capture_output=True,
            text=True,
        )
        counts.append(int(re.findall(r"I +refs: +([\d,]+)", process.stderr)[-1].replace(",", "")))
    audit_count, open_count = counts
    return audit_count, open_count


def _compare_with_debug_info(core: Path, vmlinux: str, name: str) -> Iterator[Row]:
    """Compare an audit, which uses no debug info, with programs that use it."""
    drgn_job = partial(run_command, [sys.executable, "-c", _OPEN_WITH_DWARF, core, vmlinux])
    audit_job, scan_job = partial(_inspect, core, "--no-charged"), partial(_inspect, core)
    costs = run_in_turn(5, drgn=drgn_job, audit=audit_job, scan=scan_job)
    drgn, audit, audit_with_scan = costs["drgn"], costs["audit"], costs["scan"]
    audit_name, drgn_name = f"{name}: inspect --no-charged", "drgn opening the core with DWARF"
    max_ratio = "<= 1" if name == _LARGE else None
    yield Row(audit_name, audit.wall_s, "s", drgn_name, drgn.wall_s, max_ratio)
    yield Row(f"{audit_name}, CPU time", audit.cpu_s, "s", drgn_name, drgn.cpu_s, max_ratio)
    peaks_mib = [cost.peak_rss_bytes / 2**20 for cost in (audit, drgn)]
    yield Row(f"{audit_name}, peak memory", peaks_mib[0], "MiB", drgn_name, peaks_mib[1])
    yield Row(f"{name}: time added by the charged scan", audit_with_scan.wall_s - audit.wall_s, "s", budget="<= 1")
    for stage, cpu_s in call(stages, str(core)).value.items():
        yield Row(f"{name}: CPU time of {stage}", 1000 * cpu_s, "ms")
    list_count = json.loads(audit.value)["list_lru_one_objects"]
    for walker, path in (("one object at a time", None), ("drgn-tools' lists", os.environ.get("DRGN_TOOLS"))):
        if path is None and walker != "one object at a time":
            continue
        walk_count, duration_s, reads = call(walk, str(core), vmlinux, path).value
        walker += "" if walk_count == list_count else f", {walk_count:,} of {list_count:,} lists"
        scale = list_count / walk_count
        budgets = (">= 500", ">= 1000") if name == _LARGE else (None, None)
        yield Row(f"{name}: {walker}", duration_s * scale, "s", audit_name, audit.wall_s, budgets[0])
        yield Row(f"{name}: {walker}", reads * scale, "reads", audit_name, _reads(audit), budgets[1])
    if shutil.which("crash"):
        crash = run_command(["crash", "-s", vmlinux, core], stdin=_CRASH_COMMANDS)
        if f"= {json.loads(audit.value)['memcg_nr_cache_ids']}\n" not in crash.value:
            raise RuntimeError(f"crash does not print memcg_nr_cache_ids: {crash.value}")
        crash_name = f"{name}: crash with the commit message's three commands"
        yield Row(crash_name, crash.wall_s, "s", "inspect", audit_with_scan.wall_s)


def _audits(core: Path) -> dict[str, Cost]:
    """Return the cost of an audit by its options: the run of median wall time among five."""
    jobs = {options: partial(_inspect, core, *options.split()) for options in ("--no-charged", "")}
    return run_in_turn(5, **jobs)


def _inspect(core: Path, *options: str) -> Cost:
    return run_command([sys.executable, "-m", "pipeline", "inspect", core, "--json", *options])


def _reads(audit: Cost) -> int:
    return int(json.loads(audit.value)["reads"])


def stages(core: str) -> dict[str, float]:
    """Audit a core in this process and return the CPU seconds of each stage by its name."""
    start = time.process_time()
    from pipeline.collector import snapshot
    from pipeline.collector.access import kernel
    from pipeline.collector.walk import charges, containers, list_lrus, memcgs, superblocks

    stages_s = {"starting Python with drgn": start, "importing the collector": time.process_time() - start}
    functions = {
        "opening the core": (kernel, "_attach"),
        "symbols": (kernel.kallsyms, "load"),
        "types": (kernel, "Btf"),
        "superblocks": (superblocks, "walk"),
        "memcgs": (memcgs, "walk"),
        "list_lrus": (list_lrus, "walk"),
        "owners of mounts": (containers, "find_owners"),
        "charged objects": (charges, "scan"),
    }

    def measure(stage: str, function: Any, *args: Any, **options: Any) -> Any:
        stage_start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            stages_s[stage] = time.process_time() - stage_start

    with contextlib.ExitStack() as stack:
        for stage, (module, name) in functions.items():
            stack.enter_context(mock.patch.object(module, name, partial(measure, stage, getattr(module, name))))
        snapshot.take(kernel.open_kernel(core))
    stages_s["other stages"] = time.process_time() - sum(stages_s.values())
    return stages_s


def walk(core: str, vmlinux: str, drgn_tools: str | None, max_lists: int = 200_000) -> tuple[int, float, int]:
    """Walk the list_lrus list by list, with drgn-tools or else with the tests' reference walk.

    :param drgn_tools: the path of a checkout of drgn-tools.
    :param max_lists: stop after the list_lru that reaches this number of lists.
    :return: the number of lists, seconds and read system calls. Opening the core is excluded.
    """
    import drgn
    from drgn.helpers.linux.list import list_count_nodes, list_for_each_entry

    from tests import reference

    def count_with_reference(lru: drgn.Object) -> int:
        return int(reference.list_lru(lru, {})["objects"])

    def count_with_drgn_tools(lru: drgn.Object) -> int:
        return len([list_count_nodes(list_.list.address_of_()) for _, _, list_ in for_each_list(lru)])

    if drgn_tools:
        sys.path.insert(0, drgn_tools)
        for_each_list = importlib.import_module("drgn_tools.list_lru").list_lru_for_each_list
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    superblocks = list(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"))
    start, (start_reads, _), count = time.perf_counter(), budget.reads(), 0
    for lru, _ in reference.list_lrus(prog, superblocks):
        count += count_with_drgn_tools(lru) if drgn_tools else count_with_reference(lru)
        if count >= max_lists:
            break
    return count, time.perf_counter() - start, budget.reads()[0] - start_reads
