"""`fetch-drgn` with the real pip and what it is configured to download from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def fetch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "fetch-drgn", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_each_python_and_architecture_gets_the_newest_that_there_is(tmp_path: Path) -> None:
    done = fetch("--drgn-wheels", tmp_path / "new/wheels", "--python", "3.6", "3.11", "--arch", "x86_64")
    if done.returncode:
        pytest.skip("pip cannot download drgn's wheels")
    floor, newer = map(Path, done.stdout.splitlines())
    assert floor.name.startswith("drgn-0.0.31-cp36-cp36m-manylinux")
    assert newer.name.startswith("drgn-")
    assert "-cp311-cp311-manylinux" in newer.name
    assert sorted((tmp_path / "new/wheels").iterdir()) == sorted([floor, newer])


def test_what_is_nowhere_is_named_and_fails(tmp_path: Path) -> None:
    done = fetch("--drgn-wheels", tmp_path, "--python", "3.99", "--arch", "x86_64")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "no wheel of drgn 0.0.31 or newer for Python 3.99 on x86_64"


@pytest.mark.parametrize("python", ["3.5", "2.7", "3", "3.6; id", "4.0"])
def test_a_python_that_cannot_be(tmp_path: Path, python: str) -> None:
    done = fetch("--drgn-wheels", tmp_path, "--python", python)
    assert done.returncode == 2
    assert "3.6, the oldest" in done.stderr
