"""Temporary directories, none of which stays: what a process that was killed has left, the next one removes.

A process that lives has its directory locked.
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
def directory(prefix: str, folder: str | None = None, remove: Callable[[str], None] = _remove) -> Iterator[str]:
    """Make a directory that only this user may enter, and remove it in the end.

    :param prefix: of its name; of others of this user with that prefix those are removed that nobody has locked.
    :param folder: where it is made, default TMPDIR's.
    """
    folder = folder or tempfile.gettempdir()
    for stale in Path(folder).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _opened(str(stale)) as descriptor:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(str(stale))
    with contextlib.ExitStack() as stack:
        while True:
            made = tempfile.mkdtemp(prefix=prefix, dir=folder)
            with contextlib.suppress(OSError):  # a file system without locks: nobody removes it
                fcntl.flock(stack.enter_context(_opened(made)), fcntl.LOCK_EX)
            if os.path.exists(made):  # else another process found it before it was locked
                break
        stack.callback(remove, made)
        yield made


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
