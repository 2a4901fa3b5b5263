"""Long-lived processes beside the runs: a reader, a keeper that expires and verifies, and a driver of runs of its own.

    python -m tests.soak.clients ROLE WAREHOUSE FOLDER

Each works from a line on stdin, a seed, to the next one, and then prints what it has seen as a line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.fanout import cluster
from tests import program
from tests.soak import checks

COUNTED = ("targets", "attempts", "superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages")
KEPT_RUNS = 3
DRIVER_AUDIT = "resident"
_COUNTS = ", ".join(f"(SELECT count(*) FROM {name} t WHERE t.run_id = r.run_id) AS {name}" for name in COUNTED)
_QUERY = (
    f"SELECT run_id, r.targets AS planned, {_COUNTS}, "
    "(SELECT count(DISTINCT target) FROM targets t WHERE t.run_id = r.run_id) AS names FROM runs r"
)
# What a command may say that ends with another exit code than 0.
_EXPIRED = "was expired meanwhile: run the command again"
_NO_RUNS = "no published run"
_FULL = "No space left on device"

_STDIN = open(0, "rb", buffering=0)  # noqa: SIM115  # unbuffered, so that select() sees what was not read

Seen = dict[str, Any]


def main() -> None:
    role, warehouse, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if role == "driver":
        with cluster.connection(2):
            _serve(Driver(warehouse, folder).work)
    else:
        _serve({"reader": read, "keeper": keep}[role](warehouse))


def _serve(work: Callable[[random.Random, Seen], None]) -> None:
    """Answer messages until stdin ends."""
    while message := _STDIN.readline():
        seen: Seen = {"problems": [], "commands": 0}
        work(random.Random(message), seen)
        _STDIN.readline()
        print(json.dumps(seen), flush=True)


def _is_stopped() -> bool:
    return bool(select.select([_STDIN], [], [], 0)[0])


def _run(seen: Seen, *args: str | Path, may_say: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str] | None:
    """Run a command in this process; return None if it ended as it may, without a result."""
    process = program.run(*args)
    seen["commands"] += 1
    if process.returncode == 0:
        return process
    if process.stderr.count("\n") > 1 or not any(text in process.stderr for text in may_say):
        command = " ".join(map(str, args))
        seen["problems"].append(f"{command} ended with {process.returncode}: {process.stdout}{process.stderr}")
    return None


def read(warehouse: Path) -> Callable[[random.Random, Seen], None]:
    """Return what a reader does: queries and reports in turn."""

    def work(chance: random.Random, seen: Seen) -> None:
        seen["rows"], seen["reports"] = [], []
        while not _is_stopped():
            if chance.random() < 0.7:
                query = ("sql", _QUERY, "--format", "json", "-w", warehouse)
                if process := _run(seen, *query, may_say=(_EXPIRED,)):
                    seen["rows"] += [row for row in json.loads(process.stdout) if row not in seen["rows"]]
            else:
                report = ("report", "--format", "json", "-w", warehouse)
                if process := _run(seen, *report, may_say=(_EXPIRED, _NO_RUNS)):
                    content = json.loads(process.stdout)
                    statuses = [[row["status"], row["targets"]] for row in content["coverage"]]
                    seen["reports"].append([content["run"]["run_id"], content["run"]["targets"], statuses])
            time.sleep(chance.uniform(0, 1))

    return work


def keep(warehouse: Path) -> Callable[[random.Random, Seen], None]:
    """Return what a keeper does: it expires runs, at last also what killed drivers have left, and verifies all."""

    def work(chance: random.Random, seen: Seen) -> None:
        seen["manifests"] = {}
        while not _is_stopped():
            _expire(seen, warehouse, chance.randint(1, KEPT_RUNS))
            if chance.random() < 0.3:
                _run(seen, "verify", "-w", warehouse)
            time.sleep(chance.uniform(0, 2))
        _expire(seen, warehouse, KEPT_RUNS)
        _run(seen, "verify", "-w", warehouse)

    return work


def _expire(seen: Seen, warehouse: Path, last: int) -> None:
    seen["manifests"] |= checks.manifests(warehouse)
    _run(seen, "expire", "--keep-last", str(last), "-w", warehouse, may_say=(_FULL,))


class Driver:
    """A driver that collects one run after the other with one Ray, and measures itself after each."""

    def __init__(self, warehouse: Path, folder: Path) -> None:
        self.warehouse = warehouse
        self.inventory = folder / "resident.json"
        self._libc = ctypes.CDLL(None)

    def work(self, chance: random.Random, seen: Seen) -> None:
        command: tuple[str | Path, ...] = ("run", "-i", self.inventory, "--audit", DRIVER_AUDIT, "--again")
        if staged := staged_runs(self.warehouse, DRIVER_AUDIT):
            command = "resume", staged[0]
        process = program.run(*command, "--parallel", "2", "-w", self.warehouse)
        seen["commands"] += 1
        if process.returncode != 3 and not (process.returncode == 1 and _FULL in process.stderr):
            seen["problems"].append(f"{command[0]} ended with {process.returncode}: {process.stderr}")
        seen |= self._measure()

    def _measure(self) -> Seen:
        """Return the memory of this process in KiB, without what its allocators keep for later, and its files."""
        gc.collect()
        pa.default_memory_pool().release_unused()
        self._libc.malloc_trim(0)
        rollup = Path("/proc/self/smaps_rollup").read_text()
        (memory,) = re.findall(r"^Pss_Anon: +(\d+) kB", rollup, re.MULTILINE)
        return {"kib": int(memory), "fds": len(os.listdir("/proc/self/fd")), "time": time.monotonic()}


def staged_runs(warehouse: Path, audit: str) -> list[str]:
    """Return the ids of the runs of an audit that are in staging and not published."""
    audits = {}
    for path in sorted(warehouse.glob("staging/*/run.json")):
        with contextlib.suppress(FileNotFoundError):  # published meanwhile
            audits[path.parent.name] = json.loads(path.read_bytes())["audit"]
    published = checks.manifests(warehouse)
    return [run_id for run_id, name in audits.items() if name == audit and run_id not in published]


if __name__ == "__main__":
    main()
