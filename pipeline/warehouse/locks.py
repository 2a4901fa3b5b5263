"""flock(2) on what a process is at work on; it goes with the process, however that ends.

Some network file systems have no locks. There a run is opened without, and nothing is known to be left alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def take(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; False when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def is_free(path: Path) -> bool:
    """Say whether surely no process has a file locked: there is none, or the lock was had for a moment."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


@contextmanager
def making(directory: Path) -> Iterator[None]:
    """Hold off whoever tidies a directory; others may be making something there as well."""
    with _held(directory, fcntl.LOCK_SH):
        yield


@contextmanager
def tidying(directory: Path) -> Iterator[bool]:
    """Wait until nobody is making something in a directory, and hold it; yields False where there are no locks."""
    with _held(directory, fcntl.LOCK_EX) as held:
        yield held


@contextmanager
def _held(directory: Path, how: int) -> Iterator[bool]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, how)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
