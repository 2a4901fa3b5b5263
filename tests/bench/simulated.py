"""A fleet without machines: its inventory, and what the child of each target would have returned."""

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
_RACK = 40


def write_inventory(path: Path, size: int) -> None:
    """Write an inventory of so many hosts with two labels each, as .csv, .json or .yaml."""
    hosts = [
        {
            "target": f"/var/crash/web-{number:06}/vmcore",
            "name": f"web-{number:06}.example",
            "labels": {"rack": f"r{number // _RACK}", "role": "web"},
        }
        for number in range(size)
    ]
    with path.open("w", encoding="ascii", newline="") as file:
        match path.suffix:
            case ".csv":
                rows = csv.writer(file)
                rows.writerow(["target", "name", "labels.rack", "labels.role"])
                rows.writerows([host["target"], host["name"], *host["labels"].values()] for host in hosts)
            case ".json":
                json.dump(hosts, file, indent=1)
            case ".yaml":
                for host in hosts:
                    file.write(f"- {json.dumps(host)}\n")


def write_snapshot(path: Path) -> None:
    """Audit a bundled core (65 superblocks, 131 list_lrus, 41 memcgs) and write the attempt, for `collect`."""
    (target,) = inventory.load([str(_CORE)])
    attempt = runner.run(target, 1, runner.Limits())
    if attempt["attempt"]["status"] != "ok":
        raise RuntimeError(f"{target.name}: {attempt['attempt']}")
    path.write_text(json.dumps(attempt), encoding="utf-8")


def collect(snapshot: str, target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Return at once what `runner.run` would of a host in the same state as the bundled core."""
    same = _attempt(snapshot)
    columns = {**same["columns"], "host": target.name}
    now = time.time_ns() // 1000
    return runner.result(attempt, socket.gethostname(), now, 500, "ok", None, None, columns, same["tables"])


def nothing(target: Target, attempt: int, limits: runner.Limits) -> dict[str, Any]:
    """Return at once a failed attempt."""
    return runner.result(attempt, socket.gethostname(), time.time_ns() // 1000, 0, "unreachable")


@functools.cache
def _attempt(path: str) -> dict[str, Any]:
    attempt: dict[str, Any] = json.loads(Path(path).read_bytes())
    return attempt
