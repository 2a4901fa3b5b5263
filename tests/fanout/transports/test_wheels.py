"""`fetch-drgn` with the real pip and the package index that it is configured for."""

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
    process = fetch("--drgn-wheels", tmp_path / "new/wheels", "--python", "3.6", "3.11", "--arch", "x86_64")
    if process.returncode:
        pytest.skip("needs network")
    oldest, newest = map(Path, process.stdout.splitlines())
    assert oldest.name.startswith("drgn-0.0.31-cp36-cp36m-manylinux")
    assert newest.name.startswith("drgn-")
    assert "-cp311-cp311-manylinux" in newest.name
    assert sorted((tmp_path / "new/wheels").iterdir()) == sorted([oldest, newest])


def test_what_is_nowhere_is_named_and_fails(tmp_path: Path) -> None:
    process = fetch("--drgn-wheels", tmp_path, "--python", "3.99", "--arch", "x86_64")
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.splitlines()[-1] == "no wheel of drgn 0.0.31 or newer for Python 3.99 on x86_64"


@pytest.mark.parametrize("python", ["3.5", "2.7", "3", "3.6; id", "4.0"])
def test_a_python_that_cannot_be(tmp_path: Path, python: str) -> None:
    process = fetch("--drgn-wheels", tmp_path, "--python", python)
    assert process.returncode == 2
    assert "expected 3.6 or newer" in process.stderr
