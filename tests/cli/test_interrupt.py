"""SIGINT and SIGTERM at any moment of a run: it exits with 130 and leaves no process and no temporary file."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, warehouse
from pipeline.fanout import cluster
from tests import campaign, processes

ROOT = Path(__file__).parents[2]


class Audit:
    """A run in a process group of its own, whose collectors hang.

    :param targets: number of targets; with one, the run needs no Ray.
    :param start_timeout_s: the deadline of Ray's start.
    :param setup: Python statements that it begins with.
    :ivar mark: the environment variable, as NAME=VALUE, that identifies its processes, orphans included.
    """

    def __init__(
        self, folder: Path, temporary: Path, targets: int, start_timeout_s: float = 60, setup: str = "pass"
    ) -> None:
        script = folder / "hung"
        script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
        script.chmod(0o755)
        (folder / "core").touch()
        (folder / "fleet.yaml").write_text(
            "".join(f"- {{target: '{folder}/core', name: t{n}, python: '{script}'}}\n" for n in range(targets))
        )
        self.warehouse = folder / "warehouse"
        self.script = script
        word = secrets.token_hex(16)
        self.mark = f"TEST_WORD={word}"
        clean_env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LRU_AUDIT_"))}
        # Without SPT_NOENV Ray overwrites the environment of its agents.
        env = {**clean_env, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "SPT_NOENV": "1", "TEST_WORD": word}
        code = (
            "import sys; from pipeline import cli; from pipeline.fanout import cluster; "
            f"cluster._START_TIMEOUT_S = {start_timeout_s}; {setup}; sys.exit(cli.main())"
        )
        command = [sys.executable, "-c", code, "run", "-i", folder / "fleet.yaml", "-w", self.warehouse]
        self.process = subprocess.Popen(
            [*command, "--parallel", "2"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, condition: Callable[[dict[int, str]], bool], seconds: float) -> dict[int, str]:
        """Wait until a condition holds for the run's command lines by pid, and return these."""
        deadline = time.monotonic() + seconds
        while not condition(lines := processes.find(self.mark)):
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return lines

    def wait_for_processes(self, count: int) -> None:
        """Wait until the run has `count` processes besides the driver."""
        self.wait_for(lambda lines: len(lines) > count, 90)

    def freeze(self, program: str) -> None:
        """Wait until one of Ray's processes runs, and stop it, so that Ray's start waits for ever."""
        lines = self.wait_for(lambda lines: bool(pids_of(program, lines)), 60)
        os.kill(pids_of(program, lines)[0], signal.SIGSTOP)

    def wait_until_stopped(self, program: str) -> None:
        """Wait until one of Ray's processes is stopped."""
        self.wait_for(lambda lines: any(map(is_stopped_or_dead, pids_of(program, lines))), 60)

    def wait_for_collector(self) -> None:
        """Wait until the collector runs."""
        self.wait_for(lambda lines: any(str(self.script) in command for command in lines.values()), 90)

    def wait_for_interrupted_end(self) -> str:
        """Wait for the end of an interrupted run, assert that it leaves nothing, and return its stderr."""
        stdout, stderr = self.process.communicate(timeout=30)
        assert (self.process.returncode, stdout) == (cli.INTERRUPTED, ""), stderr
        processes.wait_for_exit(self.mark, 3)
        assert stderr.splitlines()[-1] == "interrupted"
        assert "Traceback" not in stderr
        assert not list(self.warehouse.glob("runs/*")), "nothing is published"
        return stderr


@pytest.fixture
def audit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Audit]:
    """A run of two targets, or with the arguments in the test's parameter."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        running_audit = Audit(tmp_path, Path(temporary), **getattr(request, "param", {"targets": 2}))
        try:
            yield running_audit
            assert os.listdir(temporary) == []
        finally:
            processes.kill(running_audit.mark)
            running_audit.process.communicate()


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.faults) for count in (1, 4, 6))])
def test_an_interrupt_while_ray_starts_leaves_nothing(audit: Audit, count: int) -> None:
    audit.wait_for_processes(count)
    audit.process.send_signal(signal.SIGTERM if count == 2 else signal.SIGINT)
    audit.wait_for_interrupted_end()


@pytest.mark.parametrize(
    ("program", "delay_s"),
    [
        ("raylet", 0),
        *(pytest.param("raylet", n / 5, marks=pytest.mark.faults) for n in campaign.sample(range(1, 12), 3)),
        pytest.param("gcs_server", 0, marks=pytest.mark.faults),
    ],
)
def test_an_interrupt_of_a_start_that_cannot_succeed_is_answered(audit: Audit, program: str, delay_s: float) -> None:
    audit.wait_for_processes(2)
    time.sleep(delay_s)
    audit.freeze(program)
    time.sleep(1)
    audit.process.send_signal(signal.SIGTERM)
    audit.wait_for_interrupted_end()


def pids_of(program: str, lines: dict[int, str]) -> list[int]:
    """Return the pids of one of Ray's programs among command lines by pid."""
    return [pid for pid, line in lines.items() if f"/{program} " in line]


def send_before(step: str, program: str, number: int) -> None:
    """Make this process stop or kill one of Ray's processes before a step of Ray's start.

    :param step: name of the step's function in `cluster`.
    :param number: SIGSTOP or SIGKILL.
    """
    call = getattr(cluster, step)

    def send_and_call(*args: Any, **kwargs: Any) -> Any:
        (pid,) = pids_of(program, processes.find(f"TEST_WORD={os.environ['TEST_WORD']}"))
        os.kill(pid, number)
        while not is_stopped_or_dead(pid):
            time.sleep(0.01)
        return call(*args, **kwargs)

    setattr(cluster, step, send_and_call)


def is_stopped_or_dead(pid: int) -> bool:
    """Whether none of a process's threads runs or will run."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return all(re.search(r"^State:\t[TZX]", status, re.MULTILINE) for status in statuses)


def before(step: str, program: str, number: signal.Signals) -> dict[str, Any]:
    """Return the parameters of a run that calls `send_before`."""
    arguments = f"{step!r}, {program!r}, {number:d}"
    return {"targets": 2, "setup": f"from tests.cli import test_interrupt; test_interrupt.send_before({arguments})"}


CONNECTION = "_connect_to_answering_raylet"


@pytest.mark.parametrize("audit", [before(CONNECTION, "raylet", signal.SIGSTOP)], indirect=True)
def test_an_interrupt_while_ray_waits_for_its_raylet_is_answered(audit: Audit) -> None:
    audit.wait_until_stopped("raylet")
    time.sleep(1)
    audit.process.send_signal(signal.SIGTERM)
    audit.wait_for_interrupted_end()


@pytest.mark.parametrize("audit", [before(CONNECTION, "raylet", signal.SIGKILL)], indirect=True)
def test_a_raylet_that_dies_before_ray_connects_to_it_is_named(audit: Audit) -> None:
    stdout, stderr = audit.process.communicate(timeout=60)
    assert (audit.process.returncode, stdout) == (cli.FAILED, "")
    processes.wait_for_exit(audit.mark, 3)
    (line,) = stderr.splitlines()
    assert re.match(
        r"lru-audit: cannot start Ray: the raylet at \S+:\d+ does not accept connections: .*refused; ", line
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("audit", "program"),
    [
        ({"targets": 2, "start_timeout_s": 10}, "raylet"),
        # Stopped later, it makes Ray print a warning of its own.
        (before("_wait_for_persisted_port", "gcs_server", signal.SIGSTOP) | {"start_timeout_s": 10}, "gcs_server"),
    ],
    indirect=["audit"],
)
def test_a_start_that_cannot_succeed_is_given_up(audit: Audit, program: str) -> None:
    audit.wait_for_processes(1)
    audit.freeze(program)
    stdout, stderr = audit.process.communicate(timeout=60)
    assert (audit.process.returncode, stdout) == (cli.FAILED, "")
    processes.wait_for_exit(audit.mark, 3)
    (line,) = stderr.splitlines()
    assert line.startswith("lru-audit: cannot start Ray: it has not answered within 10 s; is this machine too busy")
    assert not audit.warehouse.joinpath("staging").exists() or not list(audit.warehouse.glob("staging/2*"))


@pytest.mark.faults
def test_interrupts_of_an_interrupted_start_and_end_change_nothing(audit: Audit) -> None:
    audit.wait_for_processes(4)
    while audit.process.poll() is None:
        audit.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    audit.wait_for_interrupted_end()


@pytest.mark.parametrize("audit", [{"targets": 1}, {"targets": 2}], indirect=True)
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.faults) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_an_interrupt_while_collecting_keeps_what_was_collected(audit: Audit, number: signal.Signals) -> None:
    """The signal goes to all processes at once, as from a terminal, `timeout` or systemd, and once more."""
    audit.wait_for_collector()
    os.killpg(audit.process.pid, number)
    time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(audit.process.pid, number)
    stderr = audit.wait_for_interrupted_end()
    (staging,) = audit.warehouse.glob("staging/*")
    assert re.search(f"0 of [12] targets were collected and are kept in {staging}\n", stderr)


@pytest.mark.parametrize("audit", [{"targets": 1}], indirect=True)
def test_a_run_of_one_target_has_no_process_but_its_collector_which_dies_with_it(audit: Audit) -> None:
    audit.wait_for_collector()
    assert len(processes.find(audit.mark)) == 2
    audit.process.kill()
    processes.wait_for_exit(audit.mark, 3)


@pytest.mark.faults
@pytest.mark.parametrize("program", ["raylet", "gcs_server"])
def test_an_interrupt_is_answered_although_ray_does_not_end(audit: Audit, program: str) -> None:
    audit.wait_for_collector()
    audit.freeze(program)
    audit.process.send_signal(signal.SIGTERM)
    audit.wait_for_interrupted_end()


@contextlib.contextmanager
def interrupt_at_exit(connection: contextlib.AbstractContextManager[object]) -> Iterator[object]:
    """Enter a context manager and raise KeyboardInterrupt after its exit."""
    with connection as value:
        yield value
    raise KeyboardInterrupt


@pytest.mark.usefixtures("embedded_ray")
def test_an_interrupt_while_ray_ends_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = cluster.connection
    monkeypatch.setattr(cluster, "connection", lambda *args: interrupt_at_exit(connection(*args)))
    cores = [str(ROOT / f"tests/vmcores/deb510-{name}/vmcore") for name in ("n1", "n2")]
    arguments = ["-w", str(tmp_path), "--quiet", "--parallel", "2"]
    assert cli.main(["run", *cores, *arguments]) == cli.INTERRUPTED
    (staging,) = (tmp_path / "staging").iterdir()
    kept_line, resume_line, last_line = capsys.readouterr().err.splitlines()
    assert kept_line == f"2 of 2 targets were collected and are kept in {staging}"
    assert (resume_line, last_line) == (f"resume it with: lru-audit resume {staging.name}", "interrupted")


@pytest.mark.usefixtures("embedded_ray")
def test_an_interrupt_of_a_run_that_is_published_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = warehouse.Staging.publish

    def publish_and_interrupt(staging: warehouse.Staging, check: Any) -> None:
        publish(staging, check)
        raise KeyboardInterrupt

    monkeypatch.setattr(warehouse.Staging, "publish", publish_and_interrupt)
    core = str(ROOT / "tests/vmcores/deb510-n1/vmcore")
    assert cli.main(["run", core, "-w", str(tmp_path), "--quiet"]) == cli.INTERRUPTED
    (run,) = (tmp_path / "runs").iterdir()
    assert capsys.readouterr().err.splitlines() == [f"published {run}", "interrupted"]


def test_an_interrupt_while_arguments_are_parsed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupt)
    assert cli.main(["runs"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
