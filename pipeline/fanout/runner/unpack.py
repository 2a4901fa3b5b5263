"""Unpack the core in a compressed file or a tar archive, and rearrange a flattened one: a child of the runner.

usage: python -m pipeline.fanout.runner.unpack FILE DIRECTORY     writes DIRECTORY/core

A failure is printed as a frame, as the collector does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.collector import formats
from pipeline.common import scratch
from pipeline.fanout.runner import frame
from pipeline.inventory import packed

CORE = "core"
"""Name of the unpacked core in its directory."""
NO_ROOM = "NoRoom"
"""error_type of a core that does not fit."""

# What writing raises where there is no room.
_NO_ROOM_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Left free on the file system: in a warehouse, the results of a run are written there at the same time.
_RESERVE_BYTES = 1 << 30
# Limit of an unpacked core with its holes. ext4 has no larger files with blocks of 4 KiB.
_MAX_CORE_BYTES = 16 << 40
# Zeros become holes in blocks of this size, since the pages of an idle guest are zeros in long runs.
_BLOCK_BYTES = 64 << 10
_ZEROS = bytes(_BLOCK_BYTES)
# Start of the names of directories with an unpacked core.
_PREFIX = "lru-unpacked."


@contextlib.contextmanager
def directory(parent: str | None) -> Iterator[str]:
    """Create a directory for an unpacked core that only this user may enter, and remove it at the end.

    :param parent: its parent, created if the parent of that exists; otherwise, and by default, TMPDIR.
    :raises OSError: none can be created.
    """
    if parent is not None:
        with contextlib.suppress(OSError):
            os.mkdir(parent, 0o700)
    is_usable = parent is not None and os.access(parent, os.W_OK | os.X_OK)
    with scratch.directory(_PREFIX, parent if is_usable else None) as path:
        yield path


def remove_orphans(parent: str | None) -> None:
    """Remove the directories in `parent` and TMPDIR whose process was killed."""
    for place in {parent, None}:
        scratch.remove_orphans(_PREFIX, place)


class UnpackError(Exception):
    """A core cannot be unpacked.

    :ivar error_type: class of the cause.
    """

    def __init__(self, message: str, error_type: str = "UnpackError") -> None:
        super().__init__(message)
        self.error_type = error_type


def main() -> int:
    source, directory = sys.argv[1:]
    try:
        unpack(source, directory)
    except UnpackError as error:
        failure = {"status": "bad_core", "error_type": error.error_type, "error": str(error)}
        print(frame.HEADER.decode() + json.dumps({"error": failure}))
        return 1
    return 0


def unpack(source: str, directory: str) -> None:
    """Write the core in a file to `directory`, with links to each System.map beside the file.

    :raises UnpackError: the file is damaged, has no core or several, or the core does not fit.
    :raises MemoryError: the memory limit of the process; the runner names it.
    """
    first_name = None
    try:
        with open(source, "rb") as file:
            for name, stream in packed.dumps(file):
                if first_name is not None:
                    problem = f"it has several cores in it: {first_name}, {name}"
                    raise UnpackError(f"{problem}; audit the directory of: tar -xf {shlex.quote(source)}")
                first_name = name or ""
                _write(stream, os.path.join(directory, CORE))
        for system_map in Path(source).parent.glob("System.map-*"):
            os.symlink(system_map, os.path.join(directory, system_map.name))
    except packed.ERRORS as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM_ERRNOS:
            raise _no_room(directory, str(error.strerror)) from error
        raise UnpackError(f"it cannot be unpacked: {str(error) or 'it ends early'}") from error
    if first_name is None:
        raise UnpackError("it has no core in it")


def _no_room(directory: str, reason: str) -> UnpackError:
    return UnpackError(f"no room for it in {os.path.dirname(directory)}: {reason}", NO_ROOM)


def _write(stream: packed.Stream, path: str) -> None:
    is_flattened = formats.is_flattened(stream.peek(formats.HEAD_BYTES))
    size_bytes = 0
    with open(path, "wb") as file:
        for offset, data in _records(stream) if is_flattened else _blocks(stream):
            size_bytes = max(size_bytes, offset + len(data))
            if size_bytes > _MAX_CORE_BYTES or _free_bytes(path) < _RESERVE_BYTES:
                raise _no_room(os.path.dirname(path), f"it has more than {size_bytes >> 20} MiB")
            # A record may overwrite an earlier one with zeros.
            if is_flattened or data != _ZEROS[: len(data)]:
                file.seek(offset)
                file.write(data)
        file.truncate(size_bytes)


def _blocks(stream: packed.Stream) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each block of a core."""
    offset = 0
    while data := stream.read(_BLOCK_BYTES):
        yield offset, data
        offset += len(data)


def _records(stream: packed.Stream) -> Iterator[tuple[int, bytes]]:
    """Yield offset in the core and content of each piece of a flattened core.

    :raises EOFError: its last record is missing.
    """
    stream.read_all(formats.FLATTENED_HEADER_BYTES)
    while True:
        offset, size = formats.RECORD.unpack(stream.read_all(formats.RECORD.size))
        if offset == formats.END_RECORD_OFFSET:
            return
        if offset < 0 or size <= 0:
            raise EOFError("its records are damaged")
        end = offset + size
        while offset < end:
            data = stream.read_all(min(end - offset, _BLOCK_BYTES))
            yield offset, data
            offset += len(data)


def _free_bytes(path: str) -> int:
    file_system = os.statvfs(path)
    return file_system.f_bavail * file_system.f_frsize


if __name__ == "__main__":
    sys.exit(main())
