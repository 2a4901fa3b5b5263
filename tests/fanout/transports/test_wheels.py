"""`fetch-drgn` with the real pip and the package index that it is configured for, and damaged wheels."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.fanout.transports.session import drgn_wheels
from pipeline.fanout.transports.session.failures import SessionError

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


@pytest.mark.parametrize(
    ("offset", "field"),
    [(20, 0x7FFFFFF0), (20, 1000), (42, 0x7FFFFFF0), (42, 0x40), (6, 0xFFFF)],
    ids=["2 GiB", "longer than the file", "behind the file", "elsewhere", "of a newer zip"],
)
def test_a_damaged_wheel_is_not_sent(tmp_path: Path, offset: int, field: int) -> None:
    """A field of the entry in the central directory of the zip file is wrong (APPNOTE.TXT, 4.3.12)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("drgn/__init__.py", "x = 1\n")
    data = bytearray(content.getvalue())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<H" if offset == 6 else "<I", data, entry + offset, field)
    (tmp_path / "drgn-0.1.0-cp311-cp311-manylinux_2_17_x86_64.whl").write_bytes(data)
    with pytest.raises(SessionError, match=f"no wheel can be read from {re.escape(str(tmp_path))}") as error_info:
        drgn_wheels.load(str(tmp_path), "3.11", ".cpython-311-x86_64-linux-gnu.so", "x86_64", "glibc 2.31")
    assert error_info.value.status == "no_drgn"
