"""Targets whose child runs a script, and processes that must not outlive a test."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.inventory import Target

# The fork server of launch.py imports this module; then it runs the script where it would run the collector.
_SITECUSTOMIZE = """
import runpy
runpy.run_module = lambda *_, **options: runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture
def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Target]:
    """A function that makes a target whose child, forked by a fork server, runs the given code."""
    script = tmp_path / "child.py"
    (tmp_path / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(script=str(script)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code: str, **fields: object) -> Target:
        script.write_text(textwrap.dedent(code))
        return Target(**{"name": "t", "kind": "live", "source": "live:", **fields})

    return make


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Target]:
    """A function that makes a target whose child is a program with the given code."""

    def make(code: str, **fields: object) -> Target:
        script = tmp_path / "child"
        script.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
        script.chmod(0o755)
        return Target(**{"name": "t", "kind": "live", "source": "live:", "python": str(script), **fields})

    return make


@pytest.fixture(params=["program", "forked"])
def child(request: pytest.FixtureRequest) -> Callable[..., Target]:
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file for the pids of processes that must not outlive the test; waits until all have exited."""
    file = tmp_path / "pids"
    yield file
    deadline = time.monotonic() + 5
    while running_pids := [pid for pid in file.read_text().split() if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {running_pids}"
        time.sleep(0.02)
    assert file.read_text()


def is_running(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
