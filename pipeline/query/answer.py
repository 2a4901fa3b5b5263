"""The child process that answers a user's SQL: one query in a confined session, its result as an Arrow stream.

`pipeline.query.confined` is the parent. `pipeline.query.landlock` confines this process before it imports this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.common.text import human_bytes
from pipeline.query.session import QueryError, Session

EXIT_QUERY_ERROR = 3
"""Exit code of the child when the result file holds the message of a QueryError instead of a result."""


@dataclass(frozen=True)
class Request:
    """A query and its limits. is_landlocked: the kernel restricts this process to the tables' files."""

    tables: dict[str, ds.UnionDataset]
    query: str
    params: Mapping[str, str]
    memory_bytes: int
    result_bytes: int
    threads: int
    is_landlocked: bool


def main(result_fd: int) -> None:
    """Answer the request on stdin and write the result to a file."""
    request: Request = pickle.load(sys.stdin.buffer)
    with os.fdopen(result_fd, "wb") as result:
        try:
            _answer(request, result)
        except QueryError as error:
            os.ftruncate(result_fd, 0)
            os.pwrite(result_fd, str(error).encode(errors="backslashreplace"), 0)
            os._exit(EXIT_QUERY_ERROR)  # a normal exit would flush the rest of the result over the message


def session_of(request: Request) -> Session:
    """Return the session that answers a request."""
    return Session(
        request.tables,
        is_confined=True,
        is_landlocked=request.is_landlocked,
        memory_bytes=request.memory_bytes,
        threads=request.threads,
    )


def _answer(request: Request, result: BinaryIO) -> None:
    session = session_of(request)
    with session.stream(request.query, request.params) as reader, _write_errors(request.result_bytes):
        with pa.ipc.new_stream(result, reader.schema) as stream:
            for batch in reader:
                stream.write_batch(batch)
        result.flush()


@contextlib.contextmanager
def _write_errors(result_bytes: int) -> Iterator[None]:
    """Raise the errors of a result that is too large, for its limit or the disk, as a QueryError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            size = human_bytes(result_bytes)
            raise QueryError(f"the result is larger than {size}: select fewer rows or columns") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QueryError(f"no space for the result in {tempfile.gettempdir()}, see TMPDIR") from error
        raise
