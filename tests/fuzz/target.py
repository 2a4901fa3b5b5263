"""A parser as a fuzzer sees it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """A parser of bytes from outside.

    - parse: calls the parser, and checks what it promises of its result;
    - errors: exceptions by which it may refuse bytes;
    - seeds: valid inputs, which a fuzzer changes;
    - words: texts that the parser looks for;
    - max_bytes: longest input;
    - weight: its share of the cases: the cheaper a case, the more.
    """

    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    words: Iterable[bytes] = ()
    max_bytes: int = 4096
    weight: float = 1.0

    def run(self, data: bytes) -> None:
        """Parse bytes; any other exception than `errors` is a fault."""
        with contextlib.suppress(self.errors):
            self.parse(data)


@functools.cache
def scratch() -> Path:
    """Return an empty directory, in memory where possible, that is removed when the process ends.

    A process that forks calls this first: libFuzzer ends its process without removing anything.
    """
    shm = "/dev/shm"
    directory = Path(tempfile.mkdtemp(prefix="lru-fuzz.", dir=shm if os.access(shm, os.W_OK) else None))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(directory, ignore_errors=True) if os.getpid() == owner else None)
    return directory


def file_with(data: bytes, name: str = "input") -> str:
    """Return the path of a file with this content, which the next call with the same name replaces."""
    path = scratch() / name
    path.write_bytes(data)
    return str(path)
