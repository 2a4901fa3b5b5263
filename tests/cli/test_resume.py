"""Unfinished runs: killed and interrupted drivers, a full disk, two runs at once; resumption, partial publication."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.warehouse.outcome import HOST_TABLES
from tests import program
from tests.warehouse.outcomes import session

ROOT = Path(__file__).parents[2]
VMCORES = ROOT / "tests" / "vmcores"
# The size of the list_lrus in the core `bytedance`, worked out by hand: 1905 list_lrus, each with a node array and on
# each of 4 nodes a pointer array of 16 + 8 * 24574 bytes in a compound page and 24574 list_lru_one of kmalloc-32.
SERVER_BYTES = 1905 * (256 + 4 * (262_144 + 24_574 * 32))


class Warehouse:
    """Runs commands on a warehouse."""

    def __init__(self, path: Path, temporary: Path, **env: str) -> None:
        self.path = path
        clean_env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LRU_AUDIT_"))}
        self._env = {**clean_env, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **env}

    def start(self, *args: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a command in a process group of its own.

        :param prefix: a command that runs another one, and its arguments.
        """
        command = [*prefix, sys.executable, "-m", "pipeline", *map(str, args), "-w", str(self.path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.path.parent, env=self._env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run_in_child(self, *args: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
        """Run a command with a Ray of its own, which removes what a killed one left; return exit code and stderr."""
        process = self.start(*args, prefix=prefix)
        _, stderr = process.communicate(timeout=200)
        assert "Traceback" not in stderr, stderr
        return process.returncode, stderr

    def run(self, *args: str | Path) -> tuple[int, str]:
        """Run a command in this process and return its exit code and stderr."""
        process = program.run(*args, "-w", self.path)
        return process.returncode, process.stderr

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return session(self.path).rows(query)

    def staging(self) -> Path:
        """Return the directory of the only unpublished run."""
        (directory,) = self.path.glob("staging/*")
        return directory

    def spool(self) -> list[bytes]:
        """Return the complete lines of outcomes of all unpublished runs."""
        paths = list(self.path.glob("staging/*/outcomes.jsonl"))
        return [line for path in paths for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def run_ids(self) -> list[str]:
        """Return the ids of the published runs, oldest first."""
        return sorted(path.name for path in self.path.glob("runs/*"))


@pytest.fixture
def warehouse(tmp_path: Path, embedded_ray: dict[str, str]) -> Iterator[Warehouse]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        yield Warehouse(tmp_path / "w", Path(temporary))
        assert os.listdir(temporary) == []


def wait_until(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    """Wait for a condition, and assert that the process runs until then."""
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.faults
def test_a_driver_that_is_killed_at_any_moment_publishes_nothing_and_is_gone_on_with(warehouse: Warehouse) -> None:
    cores = [VMCORES / name / "vmcore" for name in ("deb510-n1", "deb510-n2", "bytedance", "deb61-n2", "deb7-n2")]
    command: tuple[str | Path, ...] = ("run", *cores, "--audit", "killed", "--parallel", "1")
    moments: list[tuple[str, Callable[[], Any]]] = [
        ("staged", lambda: list(warehouse.path.glob("staging/*/run.json"))),
        ("one outcome", lambda: len(warehouse.spool()) > 0),
        ("a torn line or three outcomes", lambda: len(warehouse.spool()) > 2),
        ("the tables are being written", lambda: list(warehouse.path.glob("staging/*/run/*.parquet"))),
    ]
    spool: list[bytes] = []
    for moment, is_reached in moments:
        process = warehouse.start(*command)
        wait_until(process, is_reached)
        kill(process)
        assert warehouse.run_ids() == [], moment
        assert warehouse.spool()[: len(spool)] == spool, "what was collected is kept as it is"
        spool = warehouse.spool()
        run_id = warehouse.staging().name
        command = ("resume", "latest", "--parallel", "1")
    assert warehouse.run_in_child("resume", run_id[:20])[0] == cli.OK
    assert warehouse.run_ids() == [run_id]
    assert list(warehouse.path.glob("staging/*")) == []
    assert len(spool) == len(cores)
    targets = warehouse.rows("SELECT target, status, started_at FROM targets ORDER BY target")
    assert [row["status"] for row in targets] == ["ok"] * len(cores)
    (server,) = warehouse.rows("SELECT list_lru_bytes FROM host_waste WHERE host = 'bytedance'")
    assert server["list_lru_bytes"] == SERVER_BYTES


@pytest.fixture
def hanging_python(warehouse: Warehouse, tmp_path: Path) -> Path:
    """The interpreter of the second target of a run that was interrupted after the first; its inventory is removed."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
    python.chmod(0o755)
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"- {{target: '{VMCORES}/deb510-n1/vmcore', name: first, labels: {{rack: r1}}}}\n"
        f"- {{target: '{VMCORES}/deb510-n2/vmcore', name: second, python: '{python}'}}\n"
    )
    process = warehouse.start("run", "-i", fleet)
    wait_until(process, lambda: len(warehouse.spool()) == 1)
    code, stderr = warehouse.run("resume", "latest")
    assert code == cli.FAILED
    assert stderr.startswith(f"lru-audit: {warehouse.path}: audit 'fleet' is already running: pid {process.pid} on ")
    code, stderr = warehouse.run("resume", "latest", "--overlap")
    assert code == cli.FAILED
    assert stderr.splitlines() == [
        f"lru-audit: {warehouse.staging()}: another lru-audit has this run open; wait until it ends"
    ]
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (cli.INTERRUPTED, "")
    assert "1 of 2 targets were collected and are kept in " in stderr
    assert f"lru-audit resume {warehouse.staging().name}" in stderr
    fleet.unlink()
    return python


def test_an_interrupted_run_is_resumed_under_its_id_or_published_in_part_and_revised(
    warehouse: Warehouse, hanging_python: Path
) -> None:
    run_id = warehouse.staging().name
    entry, _, _ = warehouse.spool()[0].partition(b"\t")
    started_at = json.loads(entry)[1]["targets"]["started_at"][0]
    code, stderr = warehouse.run("publish", "latest")
    assert (code, warehouse.run_ids()) == (cli.USAGE, [])
    assert "1 of 2 targets of " in stderr
    partial_warehouse = Warehouse(warehouse.path.with_name("w2"), Path(warehouse._env["TMPDIR"]))
    shutil.copytree(warehouse.path, partial_warehouse.path)

    hanging_python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert warehouse.run("resume", "latest")[0] == cli.OK
    assert warehouse.run_ids() == [run_id]
    targets = warehouse.rows("SELECT target, status, epoch_us(started_at) AS started_us FROM targets ORDER BY target")
    assert [(row["target"], row["status"]) for row in targets] == [("first", "ok"), ("second", "ok")]
    assert targets[0]["started_us"] == started_at
    assert warehouse.run("resume", run_id) == (
        cli.OK,
        f"every target of {run_id} is good: nothing is left to collect\n",
    )

    assert partial_warehouse.run("publish", "latest", "--partial")[0] == cli.SOME_NOT_GOOD
    assert partial_warehouse.run_ids() == [run_id]
    (run,) = partial_warehouse.rows("SELECT complete, status_ok, status_not_run FROM runs")
    assert run == {"complete": False, "status_ok": 1, "status_not_run": 1}
    (row,) = partial_warehouse.rows("SELECT kind, attempts, started_at, error FROM targets WHERE status = 'not_run'")
    assert row["error"] == "the run was published before this target was collected"
    assert (row["kind"], row["attempts"], row["started_at"]) == ("vmcore", 0, None)

    assert partial_warehouse.run("resume", "latest")[0] == cli.OK
    revision = next(name for name in partial_warehouse.run_ids() if name != run_id)
    (latest,) = partial_warehouse.rows("SELECT run_id, revision_of, complete, good FROM latest_runs")
    assert latest == {"run_id": revision, "revision_of": run_id, "complete": True, "good": 2}
    for table in ("targets", "attempts", *HOST_TABLES):
        query = f"SELECT * EXCLUDE (run_id) FROM {table} WHERE target = 'first' AND run_id = "
        partial_rows, revision_rows = (partial_warehouse.rows(f"{query}'{id_}'") for id_ in (run_id, revision))
        assert len(partial_rows) > 0
        assert partial_rows == revision_rows, "a good row is carried over as it is"
    code, stderr = partial_warehouse.run("resume", run_id)
    assert code == cli.FAILED
    assert f"is revised by {revision}: resume that one" in stderr


def test_a_second_run_of_an_audit_ends_at_once_unless_asked_to_overlap(warehouse: Warehouse, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
    python.chmod(0o755)
    core = VMCORES / "deb510-n1" / "vmcore"
    fleet = tmp_path / "nightly.yaml"
    fleet.write_text(f"- {{target: '{core}', python: '{python}'}}\n")
    first = warehouse.start("run", "-i", fleet)
    wait_until(first, lambda: list(warehouse.path.glob("staging/*/run.json")))
    run_id = warehouse.staging().name
    for command in (("run", "-i", fleet), ("run", core, "--audit", "nightly"), ("resume", run_id)):
        code, stderr = warehouse.run(*command)
        assert code == cli.FAILED
        assert re.fullmatch(
            rf"lru-audit: {warehouse.path}: audit 'nightly' is already running: pid {first.pid} on {platform.node()} "
            r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait until it ends, or run both at once with --overlap\n",
            stderr,
        )
        assert warehouse.staging().name == run_id, "no other run is staged"
    assert warehouse.run("run", core, "--audit", "nightly", "--overlap")[0] == cli.OK
    assert len(warehouse.run_ids()) == 1
    assert first.poll() is None
    kill(first)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert warehouse.run_in_child("resume", run_id)[0] == cli.OK
    assert run_id in warehouse.run_ids()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_live_resumed_on_another_machine_is_unreachable_and_not_that_machine(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    fleet = tmp_path / "one.yaml"
    fleet.write_text("- {target: 'live:', name: web, python: /bin/false}\n")
    on_hosta = ("unshare", "--uts", "sh", "-c", 'hostname hosta; exec "$@"', "-")
    assert warehouse.run_in_child("run", "-i", fleet, prefix=on_hosta)[0] == cli.NONE_GOOD
    assert warehouse.rows("SELECT status, node FROM attempts") == [{"status": "bad_output", "node": "hosta"}]
    assert warehouse.run("resume", "latest")[0] == cli.NONE_GOOD
    (target,) = warehouse.rows("SELECT source, status, error FROM latest_targets")
    assert (target["source"], target["status"]) == ("live:", "unreachable")
    assert target["error"].startswith("live: is hosta (id ")
    assert f", but this is {platform.node()} (id " in target["error"]


@pytest.mark.parametrize("command", ["resume", "publish"])
def test_a_run_that_is_not_there_is_one_line(warehouse: Warehouse, command: str) -> None:
    code, stderr = warehouse.run(command, "latest")
    assert code == cli.FAILED
    assert stderr.count("\n") == 1
    assert f"{warehouse.path}: no run" in stderr


@pytest.fixture
def small_disk(warehouse: Warehouse, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file that leaves 200 KiB free on the file system of the warehouse, which has it to itself."""
    mount = warehouse.path
    mount.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mount], check=True)
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        filler = mount / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(mount).free - (200 << 10))
        yield filler
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("small_disk", ["tmpfs", pytest.param("ext4", marks=pytest.mark.lab)], indirect=True)
def test_a_disk_that_is_full_ends_a_run_in_one_line_and_costs_nothing_collected(
    warehouse: Warehouse, small_disk: Path
) -> None:
    cores = [VMCORES / name / "vmcore" for name in ("deb510-n1", "deb7-n2", "bytedance")]
    code, stderr = warehouse.run_in_child("run", *cores, "--quiet", "--parallel", "1")
    assert code == cli.FAILED
    directory = warehouse.staging()
    assert stderr.splitlines() == [
        f"lru-audit: {directory}: No space left on device; nothing was published, collected targets are kept "
        f"in {directory}; resume it with: lru-audit resume {directory.name}"
    ]
    assert len(warehouse.spool()) == 2
    small_disk.unlink()
    assert warehouse.run_in_child("resume", "latest")[0] == cli.OK
    assert [row["good"] for row in warehouse.rows("SELECT good FROM runs")] == [3]
