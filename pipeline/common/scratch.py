"""Temporary directories that are removed even after a kill: each new one removes those of dead processes.

A running process holds a lock on its directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def directory(prefix: str, parent: str | None = None, remove: Callable[[str], None] = _remove) -> Iterator[str]:
    """Create a directory that only this user may enter, and remove it at the end.

    :param prefix: start of its name; unlocked directories of this user with the same prefix are removed first.
    :param parent: parent directory, default TMPDIR.
    :param remove: removes a directory.
    """
    parent = parent or tempfile.gettempdir()
    remove_orphans(prefix, parent, remove)
    with contextlib.ExitStack() as stack:
        while True:
            path = tempfile.mkdtemp(prefix=prefix, dir=parent)
            with contextlib.suppress(OSError):  # on a file system without locks no process removes it
                fcntl.flock(stack.enter_context(_open_directory(path)), fcntl.LOCK_EX)
            if os.path.exists(path):  # else another process removed it before the lock
                break
        stack.callback(remove, path)
        yield path


def remove_orphans(prefix: str, parent: str | None = None, remove: Callable[[str], None] = _remove) -> None:
    """Remove this user's directories whose process is dead; parameters as for `directory`."""
    for candidate in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _open_directory(str(candidate)) as descriptor:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(str(candidate))


@contextlib.contextmanager
def _open_directory(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
