"""Temporary directories: gone in the end, and where their process was killed, gone with the next one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from pipeline.common import scratch

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys
from pipeline.common import scratch
with scratch.directory("kind.", sys.argv[1]) as directory:
    open(directory + "/file", "w").close()
    print(directory, flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a directory with a file in `folder` until its stdin ends, and that directory."""
    command = [sys.executable, "-c", HOLDS, folder]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().rstrip("\n"))


def test_a_directory_is_this_users_only_and_gone_in_the_end(tmp_path: Path) -> None:
    with scratch.directory("kind.", str(tmp_path)) as directory:
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        (Path(directory) / "folder").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    killed, left = holding(tmp_path)
    living, held = holding(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    other = tmp_path / "another.kind"
    other.mkdir()
    link = tmp_path / "kind.link"
    link.symlink_to(other)
    assert (left / "file").exists()
    with (
        scratch.directory("kind.", str(tmp_path)) as first,
        scratch.directory("kind.", str(tmp_path)) as second,  # of one process, too
    ):
        assert set(tmp_path.iterdir()) == {held, other, link, Path(first), Path(second)}
        assert (held / "file").exists()
    living.communicate(timeout=30)
    assert set(tmp_path.iterdir()) == {other, link}
