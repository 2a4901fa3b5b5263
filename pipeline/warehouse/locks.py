"""Locks on files and directories with flock(2); the kernel releases them when the process ends, for any reason.

Some network file systems have no locks. There a run is opened without a lock, and no file counts as free.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.warehouse import files


def try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; return False if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def are_supported(file: IO[bytes]) -> bool:
    """Whether the file system of a file that no other process has open has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_free(path: Path) -> bool:
    """Whether no process can have a file locked: the file is missing, or this process could lock it for a moment."""
    try:
        with open(path, "rb", opener=files.open_own) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


@contextmanager
def shared_lock(directory: Path) -> Iterator[None]:
    """Keep out an `exclusive_lock` on a directory; any number of processes may hold a shared lock."""
    with _directory_lock(directory, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[bool]:
    """Wait until no other process has a directory locked, and lock it; yields False on a file system without locks."""
    with _directory_lock(directory, fcntl.LOCK_EX) as is_locked:
        yield is_locked


@contextmanager
def _directory_lock(directory: Path, operation: int) -> Iterator[bool]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, operation)
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
