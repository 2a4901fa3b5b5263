"""Ctrl-C and SIGTERM at any moment of a run: exit 130, and no process and no temporary file stays."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, warehouse
from pipeline.fanout import cluster
from tests import processes

ROOT = Path(__file__).parents[2]


class Audit:
    """A run of its own. mark: the variable by which its processes are known, orphans as well."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        script = folder / "hung"
        script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
        script.chmod(0o755)
        (folder / "core").touch()
        (folder / "fleet.yaml").write_text(f"- {{target: '{folder}/core', python: '{script}'}}\n")
        self.warehouse = folder / "warehouse"
        self.script = script
        word = secrets.token_hex(16)
        self.mark = f"TEST_WORD={word}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LRU_AUDIT_"))}
        # Ray writes over the environment of its agents without SPT_NOENV.
        env = {**clean, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "SPT_NOENV": "1", "TEST_WORD": word}
        command = [sys.executable, "-m", "pipeline", "run", "-i", folder / "fleet.yaml", "-w", self.warehouse]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, count: int) -> None:
        """Wait until the run has so many processes besides the driver."""
        deadline = time.monotonic() + 30
        while len(processes.having(self.mark)) <= count:
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def until_collecting(self) -> None:
        deadline = time.monotonic() + 30
        while not any(str(self.script) in command for command in processes.having(self.mark).values()):
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def interrupted(self) -> str:
        """Wait until the end, see that it left nothing, and return what it said."""
        stdout, stderr = self.process.communicate(timeout=30)
        assert (self.process.returncode, stdout) == (cli.INTERRUPTED, ""), stderr
        processes.until_gone(self.mark, 3)
        assert stderr.splitlines()[-1] == "interrupted"
        assert "Traceback" not in stderr
        assert not list(self.warehouse.glob("runs/*")), "nothing is published"
        return stderr


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        run = Audit(tmp_path, Path(temporary))
        try:
            yield run
            assert os.listdir(temporary) == []
        finally:
            processes.kill(run.mark)
            run.process.communicate()


@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_an_interrupt_while_ray_starts_leaves_nothing(audit: Audit, count: int) -> None:
    audit.until(count)
    audit.process.send_signal(signal.SIGTERM if count == 4 else signal.SIGINT)
    audit.interrupted()


def test_interrupts_of_an_interrupted_start_and_end_change_nothing(audit: Audit) -> None:
    audit.until(5)
    while audit.process.poll() is None:
        audit.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    audit.interrupted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_collecting_keeps_what_was_collected(audit: Audit, number: signal.Signals) -> None:
    """To all processes at once, as a terminal, `timeout` and systemd send it, and again."""
    audit.until_collecting()
    os.killpg(audit.process.pid, number)
    time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(audit.process.pid, number)
    stderr = audit.interrupted()
    (staging,) = audit.warehouse.glob("staging/*")
    assert f"0 of 1 targets were collected and are kept in {staging}" in stderr


@contextlib.contextmanager
def interrupted_at_its_end(ray: contextlib.AbstractContextManager[object]) -> Iterator[object]:
    with ray as connected:
        yield connected
    raise KeyboardInterrupt


def test_an_interrupt_while_ray_ends_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connected = cluster.connected
    monkeypatch.setattr(cluster, "connected", lambda *args: interrupted_at_its_end(connected(*args)))
    core = str(ROOT / "tests/vmcores/deb510-n1/vmcore")
    assert cli.main(["run", core, "-w", str(tmp_path), "--quiet"]) == cli.INTERRUPTED
    (staged,) = (tmp_path / "staging").iterdir()
    kept, how, last = capsys.readouterr().err.splitlines()
    assert kept == f"1 of 1 targets were collected and are kept in {staged}"
    assert (how, last) == (f"go on with: lru-audit resume {staged.name}", "interrupted")


def test_an_interrupt_of_a_run_that_is_published_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = warehouse.Staging.publish

    def interrupted(staging: warehouse.Staging, check: Any) -> None:
        publish(staging, check)
        raise KeyboardInterrupt

    monkeypatch.setattr(warehouse.Staging, "publish", interrupted)
    core = str(ROOT / "tests/vmcores/deb510-n1/vmcore")
    assert cli.main(["run", core, "-w", str(tmp_path), "--quiet"]) == cli.INTERRUPTED
    (run,) = (tmp_path / "runs").iterdir()
    assert capsys.readouterr().err.splitlines() == [f"published {run}", "interrupted"]
