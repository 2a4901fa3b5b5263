"""The one error of the warehouse, and the way an operating system error becomes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WarehouseError(Exception):
    """A run cannot be stored or read; the message is one line that names the file."""

    exit_code = 1


@contextmanager
def storage(path: Path, remedy: str) -> Iterator[None]:
    """Turn an OSError (disk full, permission, not a directory) into a WarehouseError.

    :param path: named when the error itself names no file.
    :param remedy: what remains of the work and what to do, said after the cause.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error).splitlines()[0]
        raise WarehouseError(f"{error.filename or path}: {cause}; {remedy}") from error
