"""Real children: the fan-out, a plain pool and `xargs -P` audit the same bundled cores, in turn.

The pool runs the same `runner.run`, limits and validation included. xargs runs the bare collector and keeps nothing:
what no fan-out can be faster than. The start of Ray and its workers is not in it; `startup` has that.
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
from tests.bench.measure import ROOT, Row, call, command, interleaved

_CORES = ("deb510-n1", "deb510-n2", "deb510-n4", "deb510-offline", "deb510-arm64", "deb61-n2")
_PARALLEL = 2


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 2,000 children of each kind in rounds of 500, or for one round of 40."""
    yield from _rows(*(500, 4) if full else (40, 1))


def _rows(size: int, rounds: int) -> Iterator[Row]:
    jobs = {"ray": partial(call, through_ray, size), "pool": partial(call, through_pool, size)}
    if xargs := shutil.which("xargs"):
        argv = f"nice -n {runner.Limits().niceness} {xargs} -0 -n 1 -P {_PARALLEL}".split()
        argv += [sys.executable, "-m", "pipeline.collector"]
        sources = "\0".join(target.source for target in targets(size))
        jobs["xargs"] = partial(command, argv, stdin=sources)
    ran = interleaved(rounds, **jobs)
    rate = {name: size / (cost.wall_s if name == "xargs" else cost.value) for name, cost in ran.items()}
    yield Row(f"real children, rounds of {size}", rate["ray"], "targets/s", "a plain pool", rate["pool"], ">= 0.8")
    if xargs:
        what = "xargs -P and the bare collector"
        yield Row("real children", rate["ray"], "targets/s", what, rate["xargs"])
        pool_ms, bare_ms = (ran[name].cpu_s / size * 1000 for name in ("pool", "xargs"))
        yield Row("a plain pool: CPU time a target", pool_ms, "ms", what, bare_ms)
    if rounds > 1:
        usual = "batches of the usual size"
        for largest in (1, 4, 16):
            took_s = call(through_ray, size, largest).value
            yield Row(f"real children, batches of {largest}", size / took_s, "targets/s", usual, rate["ray"])


def targets(size: int) -> list[Target]:
    """Return so many targets: the small bundled cores over and over, each time under another name."""
    cores = inventory.load([str(ROOT / "tests" / "vmcores" / name) for name in _CORES])
    return [
        Target(f"{number:05}-{core.name}", core.kind, core.source)
        for number, core in ((number, cores[number % len(cores)]) for number in range(size))
    ]


def through_ray(size: int, largest_batch: int | None = None) -> float:
    """Audit with the fan-out and return the seconds that the children took."""
    ended: list[str] = []
    with cluster.connected(_PARALLEL), mock.patch.object(plan, "_MAX_BATCH", largest_batch or plan._MAX_BATCH):
        made = plan.make(targets(size), _PARALLEL, cluster.nodes())
        driver.run(plan.make(targets(_PARALLEL), _PARALLEL), on_outcome=lambda outcome: None)
        start = time.perf_counter()
        driver.run(made, on_outcome=lambda outcome: ended.append(outcome["row"]["status"]))
        took_s = time.perf_counter() - start
    _check(ended, size)
    return took_s


def through_pool(size: int) -> float:
    """Audit with a pool of processes and return the seconds that it took."""
    start = time.perf_counter()
    with multiprocessing.Pool(_PARALLEL) as pool:
        ended = [attempt["attempt"]["status"] for attempt in pool.imap_unordered(_audit, targets(size))]
    took_s = time.perf_counter() - start
    _check(ended, size)
    return took_s


def _audit(target: Target) -> dict[str, object]:
    return runner.run(target, 1, runner.Limits())


def _check(ended: list[str], size: int) -> None:
    if ended != ["ok"] * size:
        raise RuntimeError(f"{len(ended)} of {size} targets, {set(ended)}")
