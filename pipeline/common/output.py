"""Output of a command: its format, and stdout or a file that is replaced atomically."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_FORMATS = {
    ".csv": "csv", ".html": "html", ".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".parquet": "parquet",
    ".prom": "prometheus",
}  # fmt: skip


def format_for(path: Path | None, formats: Collection[str], default: str) -> str:
    """Return the format that the suffix of a path names if it is one of `formats`, else the default."""
    name = _FORMATS.get(path.suffix, default) if path is not None else default
    return name if name in formats else default


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, buffered text included, after its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def open_output(path: Path | None, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Yield stdout if the path is None, else a file that replaces the one at the path once it is complete.

    :raises OSError: with the path as the caller wrote it.
    """
    open_options: Mapping[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
    if path is None:
        yield sys.stdout.buffer if binary else sys.stdout
        return
    try:
        with _open_replacement(path.resolve(), open_options) as file:
            yield file
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def _open_replacement(path: Path, open_options: Mapping[str, Any]) -> Iterator[IO[Any]]:
    if path.exists() and not path.is_file():  # write to a pipe or a device, never replace it
        with path.open(**open_options) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open(**open_options) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
