"""Before the first target: the command line, the embedded Ray, the inventory."""

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
from tests.bench.measure import Row, call, command, interleaved
from tests.bench.simulated import nothing, write_inventory

_HEAVY = {"ray", "pyarrow", "duckdb", "drgn", "rich", "yaml"}
_PARALLEL = 2


def run(full: bool) -> Iterator[Row]:
    """Yield the rows; the inventory has 100,000 targets, or 5,000."""
    bare = partial(command, [sys.executable, "-c", "pass"])
    shown = interleaved(7, bare=bare, help=partial(command, [sys.executable, "-m", "pipeline", "--help"]))
    yield Row("lru-audit --help", shown["help"].wall_s, "s", budget="<= 0.2")
    yield Row("lru-audit --help", shown["help"].wall_s, "s", "python -c pass", shown["bare"].wall_s)
    yield Row("what --help imports of Ray, pyarrow and the like", call(heavy_imports).value, "packages", budget="<= 0")

    ours, plain = partial(call, embedded_ray), partial(call, plain_ray)
    started = interleaved(3 if full else 1, ours=ours, plain=plain)
    plain_s = started["plain"].wall_s
    yield Row("a Ray of its own, up and down", started["ours"].wall_s, "s", "ray.init, ray.shutdown", plain_s)
    first = call(first_outcome)
    yield Row("a Ray of its own up and the first outcome there", first.wall_s, "s")
    workers, others = first.value
    yield Row("memory of a worker", max(workers) / 2**20, "MiB")
    yield Row("memory of what else there is of Ray", others / 2**20, "MiB")

    size = 100_000 if full else 5_000
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "json", "yaml"):
            path = Path(folder) / f"fleet.{suffix}"
            write_inventory(path, size)
            loaded = call(load, str(path))
            yield Row(f"inventory of {size:,} targets, .{suffix}", loaded.wall_s, "s", budget="<= 10")
            yield Row(f"inventory of {size:,} targets, .{suffix}: memory", loaded.peak_rss_bytes / 2**20, "MiB")


def heavy_imports() -> int:
    """Return how many of the packages that are slow to import the command line's help takes."""
    from pipeline import cli

    with contextlib.suppress(SystemExit):
        cli.main(["--help"])
    return len(_HEAVY & sys.modules.keys())


def embedded_ray() -> None:
    """Start the Ray of a run and end it."""
    from pipeline.fanout import cluster

    with cluster.connected(_PARALLEL):
        pass


def first_outcome() -> tuple[list[int], int]:
    """Start the Ray of a run and collect a target that takes no time.

    Return the bytes of memory of each worker and of all other processes of Ray, shared pages in equal parts.
    """
    from pipeline.fanout import driver
    from pipeline.inventory import plan

    target = Target("one", "vmcore", "/one")
    workers, others = [], 0

    def weigh(outcome: dict[str, Any]) -> None:
        nonlocal others
        for process in _below(os.getpid()):
            rollup = (process / "smaps_rollup").read_text(encoding="ascii")
            bytes_ = 1024 * int(rollup.partition("\nPss:")[2].split()[0])
            if (process / "cmdline").read_bytes().startswith((b"ray::IDLE", b"ray::_collect")):
                workers.append(bytes_)
            else:
                others += bytes_

    driver.run(plan.make([target], _PARALLEL), on_outcome=weigh, collect=nothing)
    return workers, others


def _below(pid: int) -> Iterator[Path]:
    """Yield the directories in /proc of all that a process has started, also by others."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            yield Path(f"/proc/{child}")
            yield from _below(child)


def plain_ray() -> None:
    """Start and end Ray as its documentation does."""
    import ray

    ray.init(num_cpus=_PARALLEL, include_dashboard=False, logging_level="ERROR")
    ray.shutdown()


def load(path: str) -> None:
    """Read an inventory."""
    from pipeline import inventory

    inventory.load([], path)
