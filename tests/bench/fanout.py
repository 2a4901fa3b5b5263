"""100,000 simulated targets through all of `lru-audit run`: inventory, plan, Ray, staging, published run.

Only the child process is replaced, at the runner's boundary, by the snapshot of a bundled core under another host name.
The program to compare with is a plain pool of as many processes, which spools or drops the same results.
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

from pipeline import cli, inventory, query, warehouse
from pipeline.fanout import cluster, driver, runner
from pipeline.inventory import Target, plan
from pipeline.warehouse.runs import Manifest
from tests.bench.measure import Row, call, forget_peak_rss, peak_rss_bytes, run_in_turn
from tests.bench.simulated import collect, write_inventory, write_snapshot

_PARALLEL = 2
# Targets that the plain pool sends to a process at once: as many as the largest batch.
_CHUNK = 16
# Targets before the measured ones, which start the workers.
_WARM_UP_TARGETS = 64
_MIB = 2**20


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for up to 100,000 targets if `full`, else for 4,000."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_snapshot(folder / "snapshot.json")
        min_size, pool_size, max_size = (1_000, 10_000, 100_000) if full else (500, 2_000, 4_000)
        for size in (min_size, pool_size, max_size):
            write_inventory(folder / f"{size}.csv", size)
        yield from _compare_with_pools(name, pool_size, 3 if full else 1)
        if full:
            yield from _compare_batch_sizes(name, pool_size)
        yield from _measure_runs(name, [min_size, 10_000, max_size] if full else [min_size, max_size], full)
        cores = 10_000 if full else 1_000
        unchanged_s = call(audit_again, cores, name).value
        yield Row(f"lru-audit run of {cores:,} unchanged cores", unchanged_s, "s", budget="<= 30")


def _compare_with_pools(folder: str, size: int, repeats: int) -> Iterator[Row]:
    spool_job, drop_job = partial(call, pool, size, folder, True), partial(call, pool, size, folder, False)
    costs = run_in_turn(repeats, ray=partial(call, gather, size, folder), spool=spool_job, drop=drop_job)
    rates = {name: size / cost.value[0] for name, cost in costs.items()}
    cpu_ms = {name: cost.value[1] / size * 1000 for name, cost in costs.items()}
    row_name, pool_name = f"{size:,} targets gathered and spooled", "a plain pool that spools, too"
    yield Row(row_name, rates["ray"], "targets/s", pool_name, rates["spool"])
    yield Row(row_name, rates["ray"], "targets/s", "a plain pool that drops outcomes", rates["drop"])
    yield Row("driver's CPU time a target", cpu_ms["ray"], "ms", budget="<= 1")
    yield Row("driver's CPU time a target", cpu_ms["ray"], "ms", pool_name, cpu_ms["spool"])


def _compare_batch_sizes(folder: str, size: int) -> Iterator[Row]:
    jobs = {str(max_batch): partial(call, gather, size, folder, max_batch) for max_batch in (1, 4, 16, 64)}
    rates = {max_batch: size / cost.value[0] for max_batch, cost in run_in_turn(1, **jobs).items()}
    for max_batch, rate in rates.items():
        yield Row(f"gathered in batches of {max_batch}", rate, "targets/s", "batches of 16", rates["16"])


def _measure_runs(folder: str, sizes: Sequence[int], full: bool) -> Iterator[Row]:
    measurements = {size: call(audit, size, folder).value for size in sizes}
    min_size, max_size = sizes[0], sizes[-1]
    small, large = measurements[min_size], measurements[max_size]
    yield Row(f"{max_size:,} targets gathered and spooled", max_size / large["gather_s"], "targets/s", budget=">= 1000")
    small_mib = small["gather_peak_rss_bytes"] / _MIB
    for size in sizes[1:]:
        peak_mib = measurements[size]["gather_peak_rss_bytes"] / _MIB
        yield Row(f"driver's peak while gathering {size:,}", peak_mib, "MiB", f"{min_size:,}", small_mib, "<= 2.5")
    growth_bytes = large["gather_peak_rss_bytes"] - large["before_rss_bytes"]
    yield Row(f"memory that gathering {max_size:,} adds to the driver", growth_bytes / _MIB, "MiB", budget="<= 64")
    publish_name = f"{max_size:,} targets published, {large['rows']:,} rows"
    yield Row(publish_name, large["publish_s"], "s", budget="<= 60")
    yield Row(publish_name, large["publish_s"], "s", "gathering them", large["gather_s"])
    for size, measurement in measurements.items():
        peak_mib = measurement["publish_peak_rss_bytes"] / _MIB
        yield Row(f"driver's peak while publishing {size:,}", peak_mib, "MiB", budget="<= 1024" if full else None)
    yield Row(f"files of a published run of {max_size:,}", large["files"], "files", "tables", large["tables"], "<= 1")
    yield Row(f"lru-audit run of {max_size:,}, from inventory to ranking", large["total_s"], "s")


def gather(size: int, folder: str, max_batch: int | None = None) -> tuple[float, float]:
    """Gather outcomes into a staged run with the real fan-out.

    :return: the seconds of wall time and of the driver's CPU time. The start of Ray and of its workers is excluded;
        `startup` measures it.
    """
    with cluster.connection(_PARALLEL), mock.patch.object(plan, "_MAX_BATCH", max_batch or plan._MAX_BATCH):
        targets = inventory.load([], f"{folder}/{size}.csv")
        audit_plan = plan.make_plan(targets, _PARALLEL, cluster.nodes())
        collect_snapshot = partial(collect, f"{folder}/snapshot.json")
        with _temporary_staging(folder, targets) as staging:
            warm_up_plan = plan.make_plan(targets[:_WARM_UP_TARGETS], _PARALLEL)
            driver.run(warm_up_plan, on_outcome=staging.append, collect=collect_snapshot)
            start, cpu_start = time.perf_counter(), time.process_time()
            driver.run(audit_plan, on_outcome=staging.append, collect=collect_snapshot)
            return time.perf_counter() - start, time.process_time() - cpu_start


def pool(size: int, folder: str, spools: bool) -> tuple[float, float]:
    """Gather the same outcomes with a plain pool, and spool or drop each; return the same times as `gather`."""
    targets = inventory.load([], f"{folder}/{size}.csv")
    collect_snapshot = functools.partial(_collect_with_target, f"{folder}/snapshot.json")
    with _temporary_staging(folder, targets) as staging:
        start, cpu_start = time.perf_counter(), time.process_time()
        with multiprocessing.Pool(_PARALLEL) as workers:
            for target, attempt in workers.imap_unordered(collect_snapshot, targets, _CHUNK):
                if spools:
                    staging.append(runner.outcome(target, [attempt]))
        return time.perf_counter() - start, time.process_time() - cpu_start


def _collect_with_target(snapshot: str, target: Target) -> tuple[Target, dict[str, Any]]:
    return target, collect(snapshot, target, 1, runner.Limits())


@contextlib.contextmanager
def _temporary_staging(folder: str, targets: Sequence[Target]) -> Iterator[warehouse.Staging]:
    """A staged run, removed at the end of the block."""
    run_columns = {"run_id": warehouse.new_run_id(), "audit": "bench", "started_at": 0, "tool_version": "0"}
    root = Path(folder) / run_columns["run_id"]
    yield warehouse.Staging.create(root, {**run_columns, "targets": len(targets)}, {}, map(vars, targets))
    shutil.rmtree(root)


def audit(size: int, folder: str) -> dict[str, Any]:
    """Run `lru-audit run` in this process and return the time and the peak memory of its parts."""
    root = Path(folder) / f"warehouse-{size}"
    run_start = time.perf_counter()
    measurement: dict[str, Any] = {}
    fan_out = driver.run

    def measure_fan_out(*args: Any, **options: Any) -> None:
        forget_peak_rss()
        measurement["before_rss_bytes"] = peak_rss_bytes()
        start = time.perf_counter()
        fan_out(*args, **{**options, "collect": partial(collect, f"{folder}/snapshot.json")})
        measurement["gather_s"] = time.perf_counter() - start
        measurement["gather_peak_rss_bytes"] = peak_rss_bytes()
        forget_peak_rss()

    argv = ["run", "-i", f"{folder}/{size}.csv", "-w", str(root), "--parallel", str(_PARALLEL), "--quiet"]
    publish = warehouse.Staging.publish

    def measure_publish(*args: Any) -> Manifest:
        start = time.perf_counter()
        manifest = publish(*args)
        measurement["publish_s"] = time.perf_counter() - start
        return manifest

    with (
        mock.patch.object(driver, "run", measure_fan_out),
        mock.patch.object(warehouse.Staging, "publish", measure_publish),
    ):
        code = cli.main(argv)
    measurement["publish_peak_rss_bytes"] = peak_rss_bytes()
    measurement["total_s"] = time.perf_counter() - run_start
    (manifest,) = warehouse.published_runs(root)
    if (code, manifest.good) != (0, size):
        raise RuntimeError(f"exit code {code}, {manifest.good} of {size} targets good")
    measurement["files"] = sum(str(info.base_name).endswith(".parquet") for info in manifest.directory.entries())
    measurement["tables"] = len({file.table for file in manifest.files})
    measurement["rows"] = sum(file.rows for file in manifest.files)
    shutil.rmtree(root)
    return measurement


def audit_again(size: int, folder: str) -> float:
    """Run `lru-audit run` on cores that an earlier run has audited, and return the seconds."""
    cores = Path(folder) / "cores"
    cores.mkdir()
    for number in range(size):
        (cores / f"{number:05}").write_bytes(b"simulated core")
    inventory_file = Path(folder) / "cores.csv"
    inventory_file.write_text("target\n" + "".join(f"{core}\n" for core in sorted(cores.iterdir())), encoding="utf-8")
    time.sleep(3)  # a core that has just changed would be read again
    root = Path(folder) / "again"
    argv = ["run", "-i", str(inventory_file), "-w", str(root), "--parallel", str(_PARALLEL), "--quiet"]
    fan_out = driver.run

    def collect_all(*args: Any, **options: Any) -> None:
        fan_out(*args, **{**options, "collect": partial(collect, f"{folder}/snapshot.json")})

    with mock.patch.object(driver, "run", collect_all):
        cli.main(argv)
    start = time.perf_counter()
    code = cli.main(argv)
    duration_s = time.perf_counter() - start
    *_, manifest = warehouse.published_runs(root)
    statement = f"SELECT count(carried_from) AS targets FROM targets WHERE run_id = '{manifest.run_id}'"
    (unchanged,) = query.Session(warehouse.tables(root)).rows(statement)
    if (code, unchanged["targets"]) != (0, size):
        raise RuntimeError(f"exit code {code}, {unchanged['targets']} of {size} cores unchanged")
    return duration_s
