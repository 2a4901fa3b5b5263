"""Drivers killed at random moments, again and again: nothing half published, nothing left behind, each row once.

TEST_KILLS says how often, 12 unless set, and TEST_SEED which moments; a failure prints both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from tests import processes
from tests.cli.test_resume import ROOT, VMCORES, Warehouse

KILLS = int(os.environ.get("TEST_KILLS", "12"))
SEED = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
CORES = ("deb510-n1/vmcore", "deb61-n2/vmcore", "deb7-n2/vmcore", "absent")
TARGETS = 8
TABLES = {"runs", "targets", "attempts", "superblocks", "list_lrus", "memcgs"}
# In what two runs that do the same may differ: which they are, and when they were.
OF_A_RUN = {"run_id", "revision_of", "started_at", "finished_at", "duration_ms"}


class Fleet:
    """A warehouse, and an inventory of targets whose collectors print what real ones said of real cores."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.temporary = temporary
        self.mark = f"TMPDIR={temporary}"  # of all that runs start
        self.warehouse = Warehouse(folder / "w", temporary)
        for number, core in enumerate(CORES):
            collector = [sys.executable, "-m", "pipeline.collector", VMCORES / core]
            said = subprocess.run(collector, cwd=ROOT, stdout=subprocess.PIPE, check=False).stdout
            (folder / f"said{number}").write_bytes(said)
            python = folder / f"python{number}"
            python.write_text(f"#!/bin/sh\nsleep 0.2\ncat {folder}/said{number}\n")
            python.chmod(0o755)
        pythons = [folder / f"python{number % len(CORES)}" for number in range(TARGETS)]
        self.inventory = folder / "fleet.yaml"
        self.inventory.write_text(
            "".join(f"- {{target: 'vmcore:{p}', name: t{n}, python: '{p}'}}\n" for n, p in enumerate(pythons))
        )

    def command(self) -> tuple[str | Path, ...]:
        """What somebody would type now: to go on with what was begun, or to begin."""
        begun = {path.parent.name for path in self.warehouse.path.glob("staging/*/run.json")}
        if begun - set(self.warehouse.published()):
            return "resume", "latest", "--parallel", "2"
        return "run", "-i", self.inventory, "--audit", "killed", "--parallel", "2"

    def whole(self) -> list[Path]:
        """The runs that readers see, oldest first, each checked to be whole."""
        paths = [self.warehouse.path / "runs" / name for name in self.warehouse.published()]
        for path in paths:
            manifest = json.loads((path / "manifest.json").read_bytes())
            assert {file["table"] for file in manifest["files"]} == TABLES
            listed = {file["path"]: file["sha256"] for file in manifest["files"]}
            listed["inputs.jsonl.gz"] = manifest["inputs_sha256"]
            found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
            del found["manifest.json"]
            assert found == listed
        return paths


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        made = Fleet(tmp_path, Path(temporary))
        try:
            yield made
        finally:
            processes.kill(made.mark)


def moments(fleet: Fleet) -> dict[str, tuple[Callable[[], object], float]]:
    """What a driver that starts now is waited for to do, and the most seconds after it."""
    path, outcomes, begun = fleet.warehouse.path, len(fleet.warehouse.spool()), time.time_ns()

    def made(pattern: str) -> Callable[[], object]:
        def look() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return any(found.stat().st_mtime_ns >= begun for found in path.glob(pattern))
            return False

        return look

    return {
        "started": (lambda: True, 2),
        "has Ray's directory": (lambda: len(list(fleet.temporary.glob("lru-ray.*/r"))) > 0, 4),
        "has an outcome more": (lambda: len(fleet.warehouse.spool()) > outcomes, 1),
        "writes the tables": (made("staging/*/run"), 0.2),
        "checks the tables": (made("staging/*/run/manifest.json"), 0.5),
        "published": (made("runs"), 0.1),
    }


def rows(run: Path) -> dict[str, pa.Table]:
    tables = {name: pq.read_table(run / f"{name}-00000.parquet") for name in TABLES}
    return {name: table.drop_columns(OF_A_RUN & set(table.column_names)) for name, table in tables.items()}


def test_a_driver_killed_at_random_moments_leaves_whole_runs_and_no_process(fleet: Fleet) -> None:
    print(f"TEST_SEED={SEED} TEST_KILLS={KILLS}")
    chance = random.Random(SEED)
    killed = 0
    while killed < KILLS:
        moment, (reached, seconds) = chance.choice(list(moments(fleet).items()))
        late_s, kill = chance.uniform(0, seconds), chance.choice([os.kill, os.killpg])
        command = fleet.command()
        process = fleet.warehouse.start(*command)
        while process.poll() is None and not reached():
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(late_s)
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
            process.wait(30)  # and not for its pipes, which its Ray still holds
            killed += 1
            print(f"{command[0]} killed {late_s:.3f} s after it {moment}, by {kill.__name__}")
        else:
            _, stderr = process.communicate(timeout=30)
            # Ray gives its own start 30 s, which a busy machine can take: the next one goes on.
            assert process.returncode == cli.SOME_NOT_GOOD or "cannot start Ray" in stderr, stderr
        fleet.whole()
    while fleet.command()[0] == "resume":
        assert fleet.warehouse.run(*fleet.command())[0] == cli.SOME_NOT_GOOD
    # Another run is the one to compare with, and the one that clears up.
    assert fleet.warehouse.run(*fleet.command())[0] == cli.SOME_NOT_GOOD
    *disturbed, undisturbed = map(rows, fleet.whole())
    assert undisturbed["targets"]["target"].to_pylist() == [f"t{number}" for number in range(TARGETS)]
    assert undisturbed["list_lrus"].num_rows > TARGETS
    assert len(disturbed) > 0
    for run in disturbed:
        assert run == undisturbed
    assert list(fleet.warehouse.path.glob("staging/*")) == []
    assert os.listdir(fleet.temporary) == []
    processes.until_gone(fleet.mark, 20)
