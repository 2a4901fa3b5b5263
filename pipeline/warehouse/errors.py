"""The errors of the warehouse, and the conversion of operating system errors to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.common.errors import AuditError
from pipeline.common.text import joined_lines


class WarehouseError(AuditError):
    """A run cannot be stored or read; the message is one line that names the file."""


class TornError(WarehouseError):
    """A file that a run needs to be resumed is missing or incomplete; reading it again does not help."""


class ExpiredError(WarehouseError):
    """A run was expired while it was read; reading the runs that are left helps."""


class LocationError(WarehouseError):
    """The given path or URI cannot hold a warehouse."""

    exit_code = 2


@contextmanager
def storage_errors(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Convert errors of the file system or object store (disk full, permission, no bucket) to a WarehouseError.

    :param path: named in the message if the error itself names no file.
    :param remedy: follows the cause in the message: what is kept of the work, and what to do.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        name = getattr(error, "filename", None) or path
        raise WarehouseError(f"{name}: {cause(error)}" + (f"; {remedy}" if remedy else "")) from error


def cause(error: Exception) -> str:
    """Return the cause of an error in one line: the system's text for its errno, or the object store's message."""
    errno = getattr(error, "errno", None)
    if errno:
        return os.strerror(errno)
    # str() of an OSError with a filename, but without errno, lacks the message.
    text = str(error.args[0] if isinstance(error, OSError) and error.args else error)
    return joined_lines(text.partition(" (Request ID")[0]) or type(error).__name__
