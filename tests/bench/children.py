"""Real child processes: the fan-out and simple programs audit the same bundled cores, in turn.

- A plain pool forks a process for each core from one that has imported drgn and the collector, without the limits, the
  deadline and the validation of `runner.run`: no fan-out can be much faster.
- The runner in a pool shows what a child costs without Ray, whose workers' CPU time cannot be measured; so do started
  children, those of targets with a `python` of their own.
- xargs starts the bare collector for each core and drops its output.

The figures exclude the start of Ray and of its workers, which `startup` measures.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

from pipeline import inventory
from pipeline.collector import __main__ as collector
from pipeline.fanout import cluster, driver, runner
from pipeline.fanout.runner import frame
from pipeline.inventory import Target, plan
from tests.bench.measure import ROOT, Row, call, run_command, run_in_turn

_CORES = ("deb510-n1", "deb510-n2", "deb510-n4", "deb510-offline", "deb510-arm64", "deb61-n2")
_PARALLEL = 2


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 2,000 children of each program in rounds of 500 if `full`, else for one round of 40."""
    yield from _rows(*(500, 4) if full else (40, 1))


def _rows(size: int, rounds: int) -> Iterator[Row]:
    jobs = {
        "ray": partial(call, audit_with_ray, size),
        "pool": partial(call, audit_with_pool, size),
        "runner": partial(call, audit_with_runner, size),
        "started": partial(call, audit_with_runner, size, sys.executable),
    }
    if xargs := shutil.which("xargs"):
        argv = f"nice -n {runner.Limits().niceness} {xargs} -0 -n 1 -P {_PARALLEL}".split()
        argv += [sys.executable, "-m", "pipeline.collector"]
        sources = "\0".join(target.source for target in targets(size))
        jobs["xargs"] = partial(run_command, argv, stdin=sources)
    costs = run_in_turn(rounds, **jobs)
    rates = {name: size / (cost.wall_s if name == "xargs" else cost.value) for name, cost in costs.items()}
    cpu_ms = {name: cost.cpu_s / size * 1000 for name, cost in costs.items()}
    compared = {"pool": "a plain pool", "started": "started children", "xargs": "xargs -P and the bare collector"}
    for name in (name for name in compared if name in jobs):
        budget = ">= 0.9" if name == "pool" else None
        yield Row(f"real children, rounds of {size}", rates["ray"], "targets/s", compared[name], rates[name], budget)
        yield Row("the runner in a pool: CPU time a target", cpu_ms["runner"], "ms", compared[name], cpu_ms[name])
    if rounds > 1:
        default_size = "batches of the default size"
        for max_batch in (1, 4, 16):
            duration_s = call(audit_with_ray, size, max_batch).value
            rate = size / duration_s
            yield Row(f"real children, batches of {max_batch}", rate, "targets/s", default_size, rates["ray"])


def targets(size: int, python: str | None = None) -> list[Target]:
    """Return `size` targets: the small bundled cores repeatedly, each time under another name."""
    cores = inventory.load([str(ROOT / "tests" / "vmcores" / name) for name in _CORES])
    return [
        Target(f"{number:05}-{core.name}", core.kind, core.source, python=python)
        for number, core in ((number, cores[number % len(cores)]) for number in range(size))
    ]


def audit_with_ray(size: int, max_batch: int | None = None) -> float:
    """Audit with the fan-out and return the seconds from the first child to the last outcome."""
    statuses: list[str] = []
    with cluster.connection(_PARALLEL), mock.patch.object(plan, "_MAX_BATCH", max_batch or plan._MAX_BATCH):
        audit_plan = plan.make_plan(targets(size), _PARALLEL, cluster.nodes())
        # The first targets start the workers.
        driver.run(plan.make_plan(targets(_PARALLEL), _PARALLEL), on_outcome=lambda outcome: None)
        start = time.perf_counter()
        driver.run(audit_plan, on_outcome=lambda outcome: statuses.append(outcome["row"]["status"]))
        duration_s = time.perf_counter() - start
    _check(statuses, size)
    return duration_s


def audit_with_runner(size: int, python: str | None = None) -> float:
    """Audit with `runner.run` in a pool of processes, whose start is included, and return the seconds."""
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(_PARALLEL) as pool:
        statuses = list(pool.imap_unordered(_run, targets(size, python)))
    duration_s = time.perf_counter() - start
    _check(statuses, size)
    return duration_s


def _run(target: Target) -> str:
    return runner.run(target, 1, runner.Limits())["attempt"]["status"]


def audit_with_pool(size: int) -> float:
    """Audit with a pool that forks a process for each target, and return the seconds."""
    with contextlib.redirect_stdout(io.StringIO()):
        collector.main([os.devnull])  # imports what every audit needs
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(_PARALLEL, _prepare, maxtasksperchild=1) as pool:
        statuses = list(pool.imap_unordered(_collect, targets(size)))
    duration_s = time.perf_counter() - start
    _check(statuses, size)
    return duration_s


def _prepare() -> None:
    os.nice(runner.Limits().niceness)
    gc.disable()  # as the collector's process does


def _collect(target: Target) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        collector.main([target.source])
    return "ok" if isinstance(frame.parse(output.getvalue().encode()), frame.Snapshot) else "failed"


def _check(statuses: list[str], size: int) -> None:
    if statuses != ["ok"] * size:
        raise RuntimeError(f"{len(statuses)} of {size} targets have an outcome; their statuses: {set(statuses)}")
