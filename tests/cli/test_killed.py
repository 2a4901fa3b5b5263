"""Drivers killed at random moments: no run is published in part, no file or process stays, each row is there once.

TEST_SEED determines the moments; a driver is killed once at each kind of moment, or four times with TEST_FULL=1.
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
from pipeline.warehouse import schema
from tests import campaign, processes
from tests.cli.test_resume import ROOT, VMCORES, Warehouse

pytestmark = pytest.mark.faults

ROUNDS = 4 if campaign.IS_FULL else 1
CORES = ("deb510-n1/vmcore", "deb61-n2/vmcore", "deb7-n2/vmcore", "absent")
TARGETS = 8
TABLES = set(schema.tables())
# Columns in which two runs of the same targets may differ.
RUN_COLUMNS = {"run_id", "sequence", "revision_of", "started_at", "finished_at", "duration_ms"}


class Fleet:
    """A warehouse, and an inventory of targets whose collectors print the recorded output of real collectors.

    :ivar mark: the environment variable, as NAME=VALUE, of all processes of the runs.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.temporary = temporary
        self.mark = f"TMPDIR={temporary}"
        self.warehouse = Warehouse(folder / "w", temporary)
        for number, core in enumerate(CORES):
            collector = [sys.executable, "-m", "pipeline.collector", VMCORES / core]
            output = subprocess.run(collector, cwd=ROOT, stdout=subprocess.PIPE, check=False).stdout
            (folder / f"output{number}").write_bytes(output)
            python = folder / f"python{number}"
            python.write_text(f"#!/bin/sh\nsleep 0.2\ncat {folder}/output{number}\n")
            python.chmod(0o755)
        pythons = [folder / f"python{number % len(CORES)}" for number in range(TARGETS)]
        self.inventory = folder / "fleet.yaml"
        self.inventory.write_text(
            "".join(f"- {{target: 'vmcore:{p}', name: t{n}, python: '{p}'}}\n" for n, p in enumerate(pythons))
        )

    def command(self) -> tuple[str | Path, ...]:
        """Return the next command: resume an unfinished run, else start a run."""
        staged_ids = {path.parent.name for path in self.warehouse.path.glob("staging/*/run.json")}
        if staged_ids - set(self.warehouse.run_ids()):
            return "resume", "latest", "--parallel", "2"
        return "run", "-i", self.inventory, "--audit", "killed", "--parallel", "2"

    def published_runs(self) -> list[Path]:
        """Return the directories of the published runs, oldest first, and assert that each is complete."""
        paths = [self.warehouse.path / "runs" / name for name in self.warehouse.run_ids()]
        for path in paths:
            manifest = json.loads((path / "manifest.json").read_bytes())
            assert {file["table"] for file in manifest["files"]} == TABLES
            digests = {file["path"]: file["sha256"] for file in manifest["files"]}
            digests["inputs.jsonl.gz"] = manifest["inputs_sha256"]
            files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
            del files["manifest.json"]
            assert files == digests
        return paths


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        fleet = Fleet(tmp_path, Path(temporary))
        try:
            yield fleet
        finally:
            processes.kill(fleet.mark)


def moments(fleet: Fleet) -> dict[str, tuple[Callable[[], object], float]]:
    """Return moments of a driver that starts now: for each its condition, and the maximum of seconds until the kill."""
    path, outcomes, start_ns = fleet.warehouse.path, len(fleet.warehouse.spool()), time.time_ns()

    def has_written(pattern: str) -> Callable[[], object]:
        def condition() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return any(file.stat().st_mtime_ns >= start_ns for file in path.glob(pattern))
            return False

        return condition

    return {
        "started": (lambda: True, 2),
        "has Ray's directory": (lambda: len(list(fleet.temporary.glob("lru-ray.*/r"))) > 0, 4),
        "has an outcome more": (lambda: len(fleet.warehouse.spool()) > outcomes, 1),
        "writes the tables": (has_written("staging/*/run"), 0.2),
        "checks the tables": (has_written("staging/*/run/manifest.json"), 0.5),
        "published": (has_written("runs"), 0.1),
    }


def rows(run: Path) -> dict[str, pa.Table]:
    """Return the tables of a run without RUN_COLUMNS."""
    tables = {name: pq.read_table(run / f"{name}-00000.parquet") for name in TABLES}
    return {name: table.drop_columns(RUN_COLUMNS & set(table.column_names)) for name, table in tables.items()}


def test_a_driver_killed_at_random_moments_leaves_whole_runs_and_no_process(fleet: Fleet) -> None:
    chance = random.Random(campaign.SEED)
    pending_moments = ROUNDS * list(moments(fleet))
    chance.shuffle(pending_moments)
    while pending_moments:
        moment = pending_moments[-1]
        is_reached, max_seconds = moments(fleet)[moment]
        delay_s, kill = chance.uniform(0, max_seconds), chance.choice([os.kill, os.killpg])
        command = fleet.command()
        process = fleet.warehouse.start(*command)
        while process.poll() is None and not is_reached():
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
            process.wait(30)  # not for the end of its pipes, which its Ray still has open
            pending_moments.pop()
            print(f"{command[0]} killed {delay_s:.3f} s after it {moment}, by {kill.__name__}")
        else:
            _, stderr = process.communicate(timeout=30)
            # Ray limits its own start to 30 s, which a busy machine can exceed; the next command resumes the run.
            assert process.returncode == cli.SOME_NOT_GOOD or "cannot start Ray" in stderr, stderr
        fleet.published_runs()
    while fleet.command()[0] == "resume":
        assert fleet.warehouse.run_in_child(*fleet.command())[0] == cli.SOME_NOT_GOOD
    # One more run, without a kill, removes what the killed drivers left, and its rows are those expected of all.
    assert fleet.warehouse.run_in_child(*fleet.command())[0] == cli.SOME_NOT_GOOD
    *run_rows, expected_rows = map(rows, fleet.published_runs())
    assert expected_rows["targets"]["target"].to_pylist() == [f"t{number}" for number in range(TARGETS)]
    assert expected_rows["list_lrus"].num_rows > TARGETS
    assert len(run_rows) > 0
    for tables in run_rows:
        assert tables == expected_rows
    assert list(fleet.warehouse.path.glob("staging/*")) == []
    assert os.listdir(fleet.temporary) == []
    processes.wait_for_exit(fleet.mark, 20)
