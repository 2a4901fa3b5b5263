"""The child's side of a user's SQL: one query over a confined session, its result as an Arrow stream.

The parent is `pipeline.query.confined`; `pipeline.query.landlock` has confined this process before.
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

EXPLAINED = 3
"""The child's exit code where the result's file holds the reason, as text, instead of a result."""


@dataclass(frozen=True)
class Request:
    """What to answer. landlocked: the kernel lets this process read the tables' files and no other."""

    tables: dict[str, ds.UnionDataset]
    query: str
    params: Mapping[str, str]
    memory_bytes: int
    result_bytes: int
    landlocked: bool


def main(result_fd: int) -> None:
    """Answer the request on stdin into a file."""
    request: Request = pickle.load(sys.stdin.buffer)
    with os.fdopen(result_fd, "wb") as result:
        try:
            _answer(request, result)
        except QueryError as error:
            os.ftruncate(result_fd, 0)
            os.pwrite(result_fd, str(error).encode(errors="backslashreplace"), 0)
            os._exit(EXPLAINED)  # with the rest of the result still in its buffer


def _answer(request: Request, result: BinaryIO) -> None:
    session = Session(request.tables, confined=True, landlocked=request.landlocked, memory_bytes=request.memory_bytes)
    with session.stream(request.query, request.params) as reader, _kept(request.result_bytes):
        with pa.ipc.new_stream(result, reader.schema) as stream:
            for batch in reader:
                stream.write_batch(batch)
        result.flush()


@contextlib.contextmanager
def _kept(result_bytes: int) -> Iterator[None]:
    """Say in one line why a result cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            size = human_bytes(result_bytes)
            raise QueryError(f"the result is larger than {size}: select fewer rows or columns") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QueryError(f"no space for the result in {tempfile.gettempdir()}, see TMPDIR") from error
        raise
