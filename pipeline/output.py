"""Where a result goes: stdout, or a file that whoever reads it meanwhile sees as it was or whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def opened(path: Path | None, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Yield stdout for no path, else a file that takes its place when all is written."""
    kind: Mapping[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
    if path is None:
        yield sys.stdout.buffer if binary else sys.stdout
        return
    path = path.resolve()
    if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
        with path.open(**kind) as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open(**kind) as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
