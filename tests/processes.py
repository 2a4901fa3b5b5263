"""Find and kill the processes that a test has started, including orphans, by a variable in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def find(variable: str) -> dict[int, str]:
    """Return the command lines, by pid, of the processes with NAME=VALUE in their environment."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # exited, or of another user
            if os.fsencode(f"\0{variable}\0") in b"\0" + (path / "environ").read_bytes():
                processes[int(path.name)] = os.fsdecode((path / "cmdline").read_bytes()).replace("\0", " ")
    return processes


def wait_for_exit(variable: str, seconds: float) -> None:
    """Assert that all processes with `variable` exit within `seconds`."""
    deadline = time.monotonic() + seconds
    while processes := find(variable):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)


def kill(variable: str) -> None:
    """Kill all processes with `variable`, and those that they start in the meantime."""
    deadline = time.monotonic() + 20
    while processes := find(variable):
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)
