"""100,000 simulated targets through the whole of `lru-audit run`: inventory, plan, Ray, staging, published run.

Only the child is replaced, at the runner's boundary, by the snapshot of a bundled core under another host name. What
is compared is a plain pool of as many processes that does the same, and spools or drops what comes back.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline import cli, inventory, warehouse
from pipeline.fanout import cluster, driver, runner
from pipeline.inventory import Target, plan
from tests.bench.measure import Row, call, forget_peak_rss, interleaved, peak_rss_bytes
from tests.bench.simulated import collect, write_inventory, write_snapshot

_PARALLEL = 2
_CHUNK = 16
_WARM = 64
_MIB = 2**20


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for up to 100,000 targets, or for 4,000."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_snapshot(folder / "snapshot.json")
        few, many, pooled = (1_000, 100_000, 10_000) if full else (500, 4_000, 2_000)
        for size in {few, many, pooled}:
            write_inventory(folder / f"{size}.csv", size)
        yield from _against_pools(name, pooled, 3 if full else 1)
        if full:
            yield from _by_batch(name, pooled)
        yield from _whole_runs(name, few, 10_000 if full else 0, many)


def _against_pools(folder: str, size: int, repeats: int) -> Iterator[Row]:
    spooling, dropping = partial(call, pool, size, folder, True), partial(call, pool, size, folder, False)
    ran = interleaved(repeats, ray=partial(call, gather, size, folder), spooling=spooling, dropping=dropping)
    rate = {name: size / cost.value[0] for name, cost in ran.items()}
    cpu_ms = {name: cost.value[1] / size * 1000 for name, cost in ran.items()}
    what = f"{size:,} targets gathered and spooled"
    yield Row(what, rate["ray"], "targets/s", "a plain pool, spooled the same", rate["spooling"])
    yield Row(what, rate["ray"], "targets/s", "a plain pool, thrown away", rate["dropping"])
    yield Row("driver's CPU time a target", cpu_ms["ray"], "ms", budget="<= 1")
    yield Row("driver's CPU time a target", cpu_ms["ray"], "ms", "a plain pool, spooled the same", cpu_ms["spooling"])


def _by_batch(folder: str, size: int) -> Iterator[Row]:
    jobs = {str(largest): partial(call, gather, size, folder, largest) for largest in (1, 4, 16, 64)}
    ran = interleaved(1, **jobs)
    usual = size / ran["16"].value[0]
    for largest, cost in ran.items():
        yield Row(f"gathered in batches of {largest}", size / cost.value[0], "targets/s", "batches of 16", usual)


def _whole_runs(folder: str, few: int, between: int, many: int) -> Iterator[Row]:
    ran = {size: call(audit, size, folder).value for size in (few, between, many) if size}
    least, most = ran[few], ran[many]
    yield Row(f"{many:,} targets gathered and spooled", many / most["gather_s"], "targets/s", budget=">= 1000")
    for size in list(ran)[1:]:
        peaks = (found["gather_peak_rss_bytes"] / _MIB for found in (ran[size], least))
        yield Row(f"driver's peak while gathering {size:,}", next(peaks), "MiB", f"{few:,}", next(peaks), "<= 2.5")
    grown = most["gather_peak_rss_bytes"] - most["before_rss_bytes"]
    yield Row(f"memory that gathering {many:,} adds to the driver", grown / _MIB, "MiB", budget="<= 64")
    yield Row(
        f"{many:,} targets published, {most['rows']:,} rows", most["publish_s"], "s", "gathered", most["gather_s"]
    )
    for size, found in ran.items():
        yield Row(f"driver's peak while publishing {size:,}", found["publish_peak_rss_bytes"] / _MIB, "MiB")
    yield Row(f"files of a published run of {many:,}", most["files"], "files", "tables", most["tables"], "<= 1")
    yield Row(f"lru-audit run of {many:,}, from inventory to ranking", most["total_s"], "s")


def gather(size: int, folder: str, largest_batch: int | None = None) -> tuple[float, float]:
    """Gather into a staged run with the real fan-out; return the seconds that took, and of the driver's CPU time.

    Ray's start and that of its workers are not in it; `startup` has them.
    """
    with cluster.connected(_PARALLEL), mock.patch.object(plan, "_MAX_BATCH", largest_batch or plan._MAX_BATCH):
        targets = inventory.load([], f"{folder}/{size}.csv")
        made = plan.make(targets, _PARALLEL, cluster.nodes())
        simulated = partial(collect, f"{folder}/snapshot.json")
        with _staged(folder, targets) as staging:
            driver.run(plan.make(targets[:_WARM], _PARALLEL), on_outcome=staging.append, collect=simulated)
            start, cpu = time.perf_counter(), time.process_time()
            driver.run(made, on_outcome=staging.append, collect=simulated)
            return time.perf_counter() - start, time.process_time() - cpu


def pool(size: int, folder: str, spools: bool) -> tuple[float, float]:
    """Gather the same with a plain pool, spool each outcome or drop it; return what `gather` does."""
    targets = inventory.load([], f"{folder}/{size}.csv")
    one = functools.partial(_collect_one, f"{folder}/snapshot.json")
    with _staged(folder, targets) as staging:
        start, cpu = time.perf_counter(), time.process_time()
        with multiprocessing.Pool(_PARALLEL) as workers:
            for target, attempt in workers.imap_unordered(one, targets, _CHUNK):
                if spools:
                    staging.append(runner.outcome(target, [attempt]))
        return time.perf_counter() - start, time.process_time() - cpu


def _collect_one(snapshot: str, target: Target) -> tuple[Target, dict[str, Any]]:
    return target, collect(snapshot, target, 1, runner.Limits())


@contextlib.contextmanager
def _staged(folder: str, targets: Sequence[Target]) -> Iterator[warehouse.Staging]:
    """A staged run that is gone afterwards."""
    known = {"run_id": warehouse.new_run_id(), "audit": "bench", "started_at": 0, "tool_version": "0"}
    root = Path(folder) / known["run_id"]
    yield warehouse.Staging.create(root, {**known, "targets": len(targets)}, {}, map(vars, targets))
    shutil.rmtree(root)


def audit(size: int, folder: str) -> dict[str, Any]:
    """Run `lru-audit run` in this process and return how long its parts took and what memory they needed."""
    root = Path(folder) / f"warehouse-{size}"
    began = time.perf_counter()
    found: dict[str, Any] = {}
    fan_out = driver.run

    def timed(*args: Any, **options: Any) -> None:
        forget_peak_rss()
        found["before_rss_bytes"] = peak_rss_bytes()
        start = time.perf_counter()
        fan_out(*args, **{**options, "collect": partial(collect, f"{folder}/snapshot.json")})
        found["gather_s"] = time.perf_counter() - start
        found["gather_peak_rss_bytes"] = peak_rss_bytes()
        forget_peak_rss()

    argv = ["run", "-i", f"{folder}/{size}.csv", "-w", str(root), "--parallel", str(_PARALLEL), "--quiet"]
    publish = warehouse.Staging.publish

    def published(*args: Any) -> Path:
        start = time.perf_counter()
        path = publish(*args)
        found["publish_s"] = time.perf_counter() - start
        return path

    with mock.patch.object(driver, "run", timed), mock.patch.object(warehouse.Staging, "publish", published):
        code = cli.main(argv)
    found["publish_peak_rss_bytes"] = peak_rss_bytes()
    found["total_s"] = time.perf_counter() - began
    (manifest,) = warehouse.runs(root)
    if (code, manifest.good) != (0, size):
        raise RuntimeError(f"exit code {code}, {manifest.good} of {size} good")
    found["files"] = sum(str(info.base_name).endswith(".parquet") for info in manifest.directory.entries())
    found["tables"] = len({file.table for file in manifest.files})
    found["rows"] = sum(file.rows for file in manifest.files)
    shutil.rmtree(root)
    return found
