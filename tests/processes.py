"""Finds the processes that a test has started, orphans as well, by a variable in their environment, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def having(variable: str) -> dict[int, str]:
    """Those with NAME=VALUE in their environment: pid to command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or another user's
            if os.fsencode(f"\0{variable}\0") in b"\0" + (path / "environ").read_bytes():
                found[int(path.name)] = os.fsdecode((path / "cmdline").read_bytes()).replace("\0", " ")
    return found


def until_gone(variable: str, seconds: float) -> None:
    """See that within `seconds` there is none of them, by itself."""
    deadline = time.monotonic() + seconds
    while left := having(variable):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def kill(variable: str) -> None:
    """Kill them all, also those that they start meanwhile."""
    deadline = time.monotonic() + 20
    while left := having(variable):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
