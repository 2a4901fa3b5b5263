"""A temporary directory is removed at the end; that of a killed process is removed by the next process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from pipeline.common import scratch

ROOT = Path(__file__).parents[2]
HOLDER_SCRIPT = """
import sys
from pipeline.common import scratch
with scratch.directory("kind.", sys.argv[1]) as directory:
    open(directory + "/file", "w").close()
    print(directory, flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that has a temporary directory in `folder` until its stdin ends; return process and directory."""
    command = [sys.executable, "-c", HOLDER_SCRIPT, folder]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().rstrip("\n"))


def test_a_directory_is_this_users_only_and_gone_in_the_end(tmp_path: Path) -> None:
    with scratch.directory("kind.", str(tmp_path)) as directory:
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        (Path(directory) / "folder").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    killed_process, abandoned_folder = start_holder(tmp_path)
    running_process, locked_folder = start_holder(tmp_path)
    killed_process.send_signal(signal.SIGKILL)
    killed_process.communicate(timeout=30)
    other_folder = tmp_path / "another.kind"
    other_folder.mkdir()
    link = tmp_path / "kind.link"
    link.symlink_to(other_folder)
    assert (abandoned_folder / "file").exists()
    with (
        scratch.directory("kind.", str(tmp_path)) as first,
        scratch.directory("kind.", str(tmp_path)) as second,  # one process may have several
    ):
        assert set(tmp_path.iterdir()) == {locked_folder, other_folder, link, Path(first), Path(second)}
        assert (locked_folder / "file").exists()
    running_process.communicate(timeout=30)
    assert set(tmp_path.iterdir()) == {other_folder, link}
