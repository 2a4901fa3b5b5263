"""A simulated fleet: its inventory, and the result of the child process of each target."""

from __future__ import annotations

import csv
import functools
import json
import socket
import time
from pathlib import Path
from typing import Any

from pipeline import inventory
from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.bench.measure import ROOT

_CORE = ROOT / "tests" / "vmcores" / "deb510-n2"
_HOSTS_PER_RACK = 40


def write_inventory(path: Path, size: int) -> None:
    """Write an inventory of `size` hosts with two labels each, as .csv, .json or .yaml."""
    hosts = [
        {
            "target": f"/var/crash/web-{number:06}/vmcore",
            "name": f"web-{number:06}.example",
            "labels": {"rack": f"r{number // _HOSTS_PER_RACK}", "role": "web"},
        }
        for number in range(size)
    ]
    with path.open("w", encoding="ascii", newline="") as file:
        match path.suffix:
            case ".csv":
                writer = csv.writer(file)
                writer.writerow(["target", "name", "labels.rack", "labels.role"])
                writer.writerows([host["target"], host["name"], *host["labels"].values()] for host in hosts)
            case ".json":
                json.dump(hosts, file, indent=1)
            case ".yaml":
                for host in hosts:
                    file.write(f"- {json.dumps(host)}\n")


def write_snapshot(path: Path) -> None:
    """Audit a bundled core (65 superblocks, 131 list_lrus, 41 memcgs) and write the attempt as JSON for `collect`."""
    (target,) = inventory.load([str(_CORE)])
    attempt = runner.run(target, 1, runner.Limits())
    if attempt["attempt"]["status"] != "ok":
        raise RuntimeError(f"{target.name}: {attempt['attempt']}")
    path.write_text(json.dumps(attempt), encoding="utf-8")


def collect(snapshot: str, target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Return the result of `runner.run` for a host in the state of the bundled core, without a child process."""
    core_attempt = _read_attempt(snapshot)
    columns = {**core_attempt["columns"], "host": target.name}
    started_at = time.time_ns() // 1000
    tables = core_attempt["tables"]
    return runner.result(attempt, socket.gethostname(), started_at, 500, "ok", None, None, columns, tables)


def collect_failure(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Return the result of a failed attempt, without a child process."""
    return runner.result(attempt, socket.gethostname(), time.time_ns() // 1000, 0, "unreachable")


@functools.cache
def _read_attempt(path: str) -> dict[str, Any]:
    attempt: dict[str, Any] = json.loads(Path(path).read_bytes())
    return attempt
