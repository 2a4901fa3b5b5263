"""Output of a command: its format, and stdout or a file that is replaced atomically."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.common.text import printable

_FORMATS = {
    ".csv": "csv", ".html": "html", ".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".parquet": "parquet",
    ".prom": "prometheus",
}  # fmt: skip


def format_for(path: Path | None, formats: Collection[str], default: str) -> str:
    """Return the format that the suffix of a path names if it is one of `formats`, else the default."""
    name = _FORMATS.get(path.suffix, default) if path is not None else default
    return name if name in formats else default


def message(text: str) -> None:
    """Print lines for people to stderr, without what names in them could do to a terminal."""
    for line in text.split("\n"):
        print(printable(line), file=sys.stderr, flush=True)


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
        # A pipe or a device is written to, never replaced. resolve() of /dev/stdout names no file if that is a pipe.
        is_file = path.is_file() or not path.exists()
        with _open_replacement(path.resolve(), open_options) if is_file else path.open(**open_options) as file:
            yield file
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def _open_replacement(path: Path, open_options: Mapping[str, Any]) -> Iterator[IO[Any]]:
    replaced = path.stat() if path.exists() else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Until it has the owner and mode of the file that it replaces, others may not read it.
    mode = 0o666 if replaced is None else 0o600
    temporary.unlink(missing_ok=True)  # of a killed process with this id
    try:
        with open(temporary, opener=lambda name, flags: os.open(name, flags | os.O_EXCL, mode), **open_options) as file:
            yield file
        if replaced is not None:
            _copy_access(path, replaced, temporary)
        if path.suffix == ".prom":  # node_exporter reads it as another user, also where root's umask is 077
            temporary.chmod(temporary.stat().st_mode | 0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_access(path: Path, status: os.stat_result, copy: Path) -> None:
    """Give a copy the owner, group, mode, ACL and SELinux label of a file, as far as this user may.

    Where it may not set the group, the group gets the rights of others, and the ACL is not copied, which has the
    rights of the old group.
    """
    mode = status.st_mode & 0o777
    names = ["security.selinux", "system.posix_acl_access"]  # besides the mode, these decide who may read a file
    with suppress(OSError):
        os.chown(copy, status.st_uid, -1)
    try:
        os.chown(copy, -1, status.st_gid)
    except OSError:
        mode = mode & 0o707 | (mode & 0o007) << 3
        names.remove("system.posix_acl_access")
    copy.chmod(mode)
    for name in names:
        with suppress(OSError):  # the file has none, or the file system
            os.setxattr(copy, name, os.getxattr(path, name))
