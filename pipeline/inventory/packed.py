"""Dumps that are compressed, or members of a tar archive, as streams that unpack them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from pipeline.collector import formats

# What reading a damaged file raises: gzip, bz2 and pyarrow raise OSError, pyarrow also ValueError, tarfile
# RecursionError for a chain of long names and IndexError for a sparse map that is cut off.
ERRORS = (
    *(OSError, EOFError, ValueError, RecursionError, IndexError),
    *(zlib.error, lzma.LZMAError, tarfile.TarError),
)

# Bytes that tarfile may read at once. It reads a pax header or a long name whole; the extended attributes of a file on
# Linux have 64 KiB each.
_MAX_TAR_READ_BYTES = 1 << 20
# Bytes of a compressed file that are read at a time to skip them.
_SKIP_BYTES = 1 << 16


class Stream:
    """A stream whose next bytes can be looked at, and of which at most a given number of bytes can be read.

    :param file: anything with read(n), which may return less.
    :param size_bytes: size of the file, if skipped bytes need not be read: it is not compressed.
    """

    def __init__(self, file: Any, max_bytes: int | None = None, size_bytes: int | None = None) -> None:
        self._file = file
        self._left = max_bytes
        self._size_bytes = size_bytes
        self._head = b""

    def peek(self, count: int) -> bytes:
        """Return the next bytes without consuming them: as many as asked for, unless the stream ends."""
        while len(self._head) < count and (data := self._next(count - len(self._head))):
            self._head += data
        return self._head[:count]

    def read(self, count: int) -> bytes:
        """Return at least one and at most `count` bytes, or nothing at the end.

        :raises EOFError: `max_bytes` were read.
        """
        if not self._head:
            return self._next(count)
        data, self._head = self._head[:count], self._head[count:]
        return data

    def read_all(self, count: int) -> bytes:
        """Return exactly `count` bytes.

        :raises EOFError: the stream ends before.
        """
        data = b""
        while len(data) < count:
            piece = self.read(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def skip(self, count: int) -> None:
        """Pass over `count` bytes.

        :raises EOFError: the stream ends before.
        """
        head_bytes = min(count, len(self._head))
        self._head = self._head[head_bytes:]
        count -= head_bytes
        if self._size_bytes is not None:
            position = self._file.tell() + count
            if position > self._size_bytes:
                raise EOFError
            self._file.seek(position)
            return
        while count:
            count -= len(self.read_all(min(count, _SKIP_BYTES)))

    def _next(self, count: int) -> bytes:
        if self._left is None:
            return bytes(self._file.read(count))
        if not self._left:
            raise EOFError("it is too large to be searched")
        data = bytes(self._file.read(min(count, self._left)))
        self._left -= len(data)
        return data


class _TarSource:
    """What tarfile reads from: a stream that goes forwards only, and raises an error where it cannot go on.

    tarfile itself does not notice the end of a stream while it skips a member, and a member may claim 2**77 bytes.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("its members overlap")
        self._stream.skip(position - self._position)
        self._position = position

    def read(self, count: int) -> bytes:
        """Return `count` bytes, or less at the end."""
        if not 0 <= count <= _MAX_TAR_READ_BYTES:
            raise tarfile.ReadError(f"a header of {count} bytes")
        data = b""
        while len(data) < count and (piece := self._stream.read(count - len(data))):
            data += piece
        self._position += len(data)
        return data


def dumps(
    file: IO[bytes], max_bytes: int | None = None, max_members: int | None = None
) -> Iterator[tuple[str | None, Stream]]:
    """Yield each dump in a compressed file or a tar archive: the member's name, if there is an archive, and its bytes.

    A stream can be read until the next is asked for. What is skipped in an uncompressed archive is not read.

    :param max_bytes: limit on the unpacked bytes that are read; beyond it an error is raised.
    :param max_members: limit on the members of an archive that are looked at; beyond it an error is raised.
    :raises Exception: one of ERRORS.
    """
    content = _unpacked(file)
    stream = Stream(content, max_bytes, os.fstat(file.fileno()).st_size if content is file else None)
    head = stream.peek(formats.HEAD_BYTES)
    if not formats.is_tar(head):
        if formats.is_dump(head):
            yield None, stream
        return
    with _tar(stream) as archive:
        for number, member in enumerate(archive):
            if number == max_members:
                raise EOFError("it has too many members to be searched")
            member_file: Any = archive.extractfile(member) if member.isreg() else None
            if member_file is not None:
                member_stream = Stream(member_file.raw)  # without the buffer, which would read 8 KB ahead
                if formats.is_dump(member_stream.peek(formats.HEAD_BYTES)):
                    yield member.name, member_stream


def archive(file: IO[bytes], max_bytes: int) -> tarfile.TarFile:
    """Open a tar archive, compressed or not, that is read from its start to its end.

    :param max_bytes: limit on the unpacked bytes that are read; beyond it an error is raised.
    :raises Exception: one of ERRORS, as does reading it.
    """
    stream = Stream(_unpacked(file), max_bytes)
    if not formats.is_tar(stream.peek(formats.HEAD_BYTES)):
        raise tarfile.ReadError("not a tar archive")
    return _tar(stream)


def _tar(stream: Stream) -> tarfile.TarFile:
    source: Any = _TarSource(stream)
    return tarfile.open(fileobj=source, mode="r:")


def is_packed(head: bytes) -> bool:
    """Whether a file with these first bytes is compressed or a tar archive."""
    return formats.compression(head) is not None or formats.is_tar(head)


def _unpacked(file: IO[bytes]) -> Any:
    """Return a file of the uncompressed bytes of a file; it may be uncompressed already."""
    file.seek(0)
    program = formats.compression(file.read(formats.HEAD_BYTES))
    file.seek(0)
    match program:
        case None:
            return file
        case "gzip":
            return gzip.GzipFile(fileobj=file)
        case "bzip2":
            return bz2.BZ2File(file)
        case "xz":
            return lzma.LZMAFile(file)
        case _:
            import pyarrow

            return pyarrow.CompressedInputStream(file, program)
