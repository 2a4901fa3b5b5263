"""Startup: the cost of the command line, of a run of one target, of the embedded Ray and of reading an inventory."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.inventory import Target
from tests.bench.measure import ROOT, Row, call, run_command, run_in_turn
from tests.bench.simulated import collect_failure, write_inventory

_HEAVY_PACKAGES = {"ray", "pyarrow", "duckdb", "drgn", "rich", "yaml"}
_PARALLEL = 2


def run(full: bool) -> Iterator[Row]:
    """Yield the rows; the inventory has 100,000 targets if `full`, else 5,000."""
    bare = partial(run_command, [sys.executable, "-c", "pass"])
    help_costs = run_in_turn(7, bare=bare, help=partial(run_command, [sys.executable, "-m", "pipeline", "--help"]))
    yield Row("lru-audit --help", help_costs["help"].wall_s, "s", budget="<= 0.2")
    yield Row("lru-audit --help", help_costs["help"].wall_s, "s", "python -c pass", help_costs["bare"].wall_s)
    yield Row("heavy packages that --help imports", call(heavy_imports).value, "packages", budget="<= 0")

    with tempfile.TemporaryDirectory() as folder:
        core = ROOT / "tests/vmcores/deb510-n1/vmcore"
        command = [sys.executable, "-m", "pipeline", "run", core, "-w", folder, "--quiet"]
        costs = run_in_turn(5 if full else 1, run=partial(run_command, command))
    yield Row("lru-audit run of one small core, until the ranking", costs["run"].wall_s, "s", budget="<= 2")
    yield Row("lru-audit run of one small core: CPU time", costs["run"].cpu_s, "s")

    ray_costs = run_in_turn(3 if full else 1, embedded=partial(call, embedded_ray), plain=partial(call, plain_ray))
    plain_s = ray_costs["plain"].wall_s
    yield Row("embedded Ray, start and stop", ray_costs["embedded"].wall_s, "s", "ray.init, ray.shutdown", plain_s)
    first_cost = call(first_outcome)
    yield Row("embedded Ray, start until the first outcome", first_cost.wall_s, "s")
    worker_bytes, other_bytes = first_cost.value
    yield Row("memory of a Ray worker", max(worker_bytes) / 2**20, "MiB")
    yield Row("memory of all other Ray processes", other_bytes / 2**20, "MiB")

    size = 100_000 if full else 5_000
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "json", "yaml"):
            path = Path(folder) / f"fleet.{suffix}"
            write_inventory(path, size)
            cost = call(load, str(path))
            yield Row(f"inventory of {size:,} targets, .{suffix}", cost.wall_s, "s", budget="<= 10")
            yield Row(f"inventory of {size:,} targets, .{suffix}: memory", cost.peak_rss_bytes / 2**20, "MiB")


def heavy_imports() -> int:
    """Return the number of slow packages that the help of the command line imports."""
    from pipeline import cli

    with contextlib.suppress(SystemExit):
        cli.main(["--help"])
    return len(_HEAVY_PACKAGES & sys.modules.keys())


def embedded_ray() -> None:
    """Start and stop Ray as a run does."""
    from pipeline.fanout import cluster

    with cluster.connection(_PARALLEL):
        pass


def first_outcome() -> tuple[list[int], int]:
    """Start Ray as a run does, and collect targets that take no time.

    :return: the memory of each worker and of all other processes of Ray, in bytes. Shared pages are split evenly (PSS).
    """
    from pipeline.fanout import driver
    from pipeline.inventory import plan

    targets = [Target(f"t{number}", "vmcore", "/core") for number in range(_PARALLEL)]
    worker_bytes: list[int] = []
    other_bytes = 0

    def measure(outcome: dict[str, Any]) -> None:
        nonlocal other_bytes
        if worker_bytes:  # not the first outcome
            return
        for process in _descendants(os.getpid()):
            rollup = (process / "smaps_rollup").read_text(encoding="ascii")
            pss_bytes = 1024 * int(rollup.partition("\nPss:")[2].split()[0])
            if (process / "cmdline").read_bytes().startswith((b"ray::IDLE", b"ray::collect_batch")):
                worker_bytes.append(pss_bytes)
            else:
                other_bytes += pss_bytes

    driver.run(plan.make_plan(targets, _PARALLEL), on_outcome=measure, collect=collect_failure)
    return worker_bytes, other_bytes


def _descendants(pid: int) -> Iterator[Path]:
    """Yield the directories in /proc of a process's children, of their children, and so on."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            yield Path(f"/proc/{child}")
            yield from _descendants(child)


def plain_ray() -> None:
    """Start and stop Ray as its documentation does."""
    import ray

    ray.init(num_cpus=_PARALLEL, include_dashboard=False, logging_level="ERROR")
    ray.shutdown()


def load(path: str) -> None:
    """Read an inventory."""
    from pipeline import inventory

    inventory.load([], path)
