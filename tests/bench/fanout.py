"""A fleet of simulated targets through the whole of `lru-audit run`: inventory, plan, Ray, staging, publish.

Only the child is replaced, at the runner's boundary, by the snapshot of a bundled core under another host name. What
is compared is a plain pool of as many processes that does the same and spools or drops what comes back.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline import cli, fanout, inventory, runner, warehouse
from pipeline.inventory import Target
from tests.bench.measure import ROOT, Row, call, peak_rss_bytes

CORE = ROOT / "tests" / "vmcores" / "deb510-n2"
PARALLEL = 2
_CHUNK = 16


def run(full: bool) -> Iterator[Row]:
    """Yield the rows for 100,000 targets, or for 2,000."""
    sizes = (1_000, 10_000, 100_000) if full else (500, 2_000)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot.json"
        (target,) = inventory.load([str(CORE)])
        snapshot.write_text(json.dumps(runner.run(target, 1, runner.Limits())), encoding="utf-8")
        peaks = {}
        for size in sizes:
            write_inventory(size, Path(folder))
            ran = call(audit, size, folder).value
            peaks[size] = ran["gather_peak_rss_bytes"] / 2**20
            print(size, ran, file=sys.stderr)


def write_inventory(size: int, folder: Path) -> None:
    """Write an inventory of so many hosts, as a fleet has them."""
    with (folder / f"{size}.csv").open("w", encoding="ascii") as file:
        file.write("target,name,labels.rack,labels.role\n")
        for number in range(size):
            file.write(f"/cores/{number}/vmcore,web-{number:06}.example,r{number // 40},web\n")


def audit(size: int, folder: str) -> dict[str, Any]:
    """Run `lru-audit run` in this process and return how long its parts took and what they needed."""
    root = Path(folder) / f"warehouse-{size}"
    found: dict[str, Any] = {}
    began = time.perf_counter()

    def gather(*args: Any, **options: Any) -> None:
        found["before_peak_rss_bytes"] = peak_rss_bytes()
        found["before_s"] = time.perf_counter() - began
        start = time.perf_counter()
        cpu = time.process_time()
        fan_out(*args, **options, collect=functools.partial(collect, f"{folder}/snapshot.json"))
        found["gather_s"] = time.perf_counter() - start
        found["gather_cpu_s"] = time.process_time() - cpu
        found["gather_peak_rss_bytes"] = peak_rss_bytes()

    fan_out = fanout.run
    argv = ["run", "-i", f"{folder}/{size}.csv", "-w", str(root), "--parallel", str(PARALLEL), "--quiet"]
    with mock.patch.object(fanout, "run", gather):
        code = cli.main(argv)
    found["total_s"] = time.perf_counter() - began
    found["peak_rss_bytes"] = peak_rss_bytes()
    (manifest,) = warehouse.runs(root)
    assert (code, manifest.good) == (0, size)
    found["files"] = len(manifest.files)
    return found


def collect(snapshot: str, target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Return what `runner.run` would of a host in the same state as the bundled core."""
    same = _snapshot(snapshot)
    columns = {**same["columns"], "host": target.name}
    now = time.time_ns() // 1000
    return runner.result(attempt, socket.gethostname(), now, 500, "ok", None, None, columns, same["tables"])


@functools.cache
def _snapshot(path: str) -> dict[str, Any]:
    snapshot: dict[str, Any] = json.loads(Path(path).read_bytes())
    return snapshot


def pool(size: int, folder: str, spools: bool) -> float:
    """Collect the same with a plain pool, spool each outcome or drop it, and return how long that took."""
    targets = inventory.load([], f"{folder}/{size}.csv")
    known = {"run_id": warehouse.new_run_id(), "audit": "pool", "started_at": 0, "targets": size, "tool_version": "0"}
    root = Path(folder) / f"pool-{size}"
    staging = warehouse.Staging.create(root, known, {}, map(vars, targets))
    one = functools.partial(_collect_one, f"{folder}/snapshot.json")
    start = time.perf_counter()
    with multiprocessing.Pool(PARALLEL) as workers:
        for target, attempt in workers.imap_unordered(one, targets, _CHUNK):
            if spools:
                staging.append(runner.outcome(target, [attempt]))
    return time.perf_counter() - start


def _collect_one(snapshot: str, target: Target) -> tuple[Target, dict[str, Any]]:
    return target, collect(snapshot, target, 1, runner.Limits())
