"""The errors of the warehouse, and the way an operating system error becomes one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.common.errors import AuditError


class WarehouseError(AuditError):
    """A run cannot be stored or read; the message is one line that names the file."""


class TornError(WarehouseError):
    """A file without which a run cannot be gone on with is not there, or not whole; reading it again will not help."""


class LocationError(WarehouseError):
    """A warehouse cannot be where it was said to be."""

    exit_code = 2


@contextmanager
def storage(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turn what a file system raises (disk full, permission, no such bucket) into a WarehouseError.

    :param path: named when the error itself names no file.
    :param remedy: what remains of the work and what to do, said after the cause.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        name = getattr(error, "filename", None) or path
        raise WarehouseError(f"{name}: {cause(error)}" + (f"; {remedy}" if remedy else "")) from error


def cause(error: Exception) -> str:
    """Return what went wrong in one line: the system's own words, or what the object store said."""
    number = getattr(error, "errno", None)
    if number:
        return os.strerror(number)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.partition(" (Request ID")[0]
