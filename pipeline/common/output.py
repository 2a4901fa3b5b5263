"""Where a result goes and as what: stdout, or a file that whoever reads it meanwhile sees as it was or whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_FORMS = {
    ".csv": "csv", ".html": "html", ".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".parquet": "parquet",
    ".prom": "prometheus",
}  # fmt: skip


def form(path: Path | None, known: Collection[str], default: str) -> str:
    """Return the one of the known formats that a path's suffix names, else the default."""
    named = _FORMS.get(path.suffix, default) if path is not None else default
    return named if named in known else default


def discard() -> None:
    """Let what is still buffered for stdout, and all that comes, go nowhere: what reads it has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def opened(path: Path | None, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Yield stdout for no path, else a file that takes its place when all is written.

    Raises OSError that names the path as it is given.
    """
    kind: Mapping[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
    if path is None:
        yield sys.stdout.buffer if binary else sys.stdout
        return
    try:
        with _replacing(path.resolve(), kind) as file:
            yield file
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def _replacing(path: Path, kind: Mapping[str, Any]) -> Iterator[IO[Any]]:
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
