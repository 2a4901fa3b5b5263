"""Real child processes: the fan-out, a plain pool and `xargs -P` audit the same bundled cores, in turn.

The pool runs the same `runner.run`, limits and validation included. xargs runs the bare collector and drops its output:
no fan-out can be faster. The figures exclude the start of Ray and of its workers, which `startup` measures.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

from pipeline import inventory
from pipeline.fanout import cluster, driver, runner
from pipeline.inventory import Target, plan
from tests.bench.measure import ROOT, Row, call, run_command, run_in_turn

_CORES = ("deb510-n1", "deb510-n2", "deb510-n4", "deb510-offline", "deb510-arm64", "deb61-n2")
_PARALLEL = 2


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 2,000 children of each program in rounds of 500 if `full`, else for one round of 40."""
    yield from _rows(*(500, 4) if full else (40, 1))


def _rows(size: int, rounds: int) -> Iterator[Row]:
    jobs = {"ray": partial(call, audit_with_ray, size), "pool": partial(call, audit_with_pool, size)}
    if xargs := shutil.which("xargs"):
        argv = f"nice -n {runner.Limits().niceness} {xargs} -0 -n 1 -P {_PARALLEL}".split()
        argv += [sys.executable, "-m", "pipeline.collector"]
        sources = "\0".join(target.source for target in targets(size))
        jobs["xargs"] = partial(run_command, argv, stdin=sources)
    costs = run_in_turn(rounds, **jobs)
    rates = {name: size / (cost.wall_s if name == "xargs" else cost.value) for name, cost in costs.items()}
    yield Row(f"real children, rounds of {size}", rates["ray"], "targets/s", "a plain pool", rates["pool"], ">= 0.8")
    if xargs:
        xargs_name = "xargs -P and the bare collector"
        yield Row("real children", rates["ray"], "targets/s", xargs_name, rates["xargs"])
        pool_ms, bare_ms = (costs[name].cpu_s / size * 1000 for name in ("pool", "xargs"))
        yield Row("a plain pool: CPU time a target", pool_ms, "ms", xargs_name, bare_ms)
    if rounds > 1:
        default_size = "batches of the default size"
        for max_batch in (1, 4, 16):
            duration_s = call(audit_with_ray, size, max_batch).value
            rate = size / duration_s
            yield Row(f"real children, batches of {max_batch}", rate, "targets/s", default_size, rates["ray"])


def targets(size: int) -> list[Target]:
    """Return `size` targets: the small bundled cores repeatedly, each time under another name."""
    cores = inventory.load([str(ROOT / "tests" / "vmcores" / name) for name in _CORES])
    return [
        Target(f"{number:05}-{core.name}", core.kind, core.source)
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


def audit_with_pool(size: int) -> float:
    """Audit with a pool of processes, whose start is included, and return the seconds."""
    start = time.perf_counter()
    with multiprocessing.Pool(_PARALLEL) as pool:
        statuses = [attempt["attempt"]["status"] for attempt in pool.imap_unordered(_audit, targets(size))]
    duration_s = time.perf_counter() - start
    _check(statuses, size)
    return duration_s


def _audit(target: Target) -> dict[str, object]:
    return runner.run(target, 1, runner.Limits())


def _check(statuses: list[str], size: int) -> None:
    if statuses != ["ok"] * size:
        raise RuntimeError(f"{len(statuses)} of {size} targets have an outcome; their statuses: {set(statuses)}")
