"""Dumps that are compressed, or members of a tar archive, as streams that unpack them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from pipeline.collector import formats

# What reading a damaged file raises: gzip, bz2 and pyarrow raise OSError, pyarrow also ValueError.
ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError)

# Bytes that tarfile reads at a time; by default 10 KB.
_TAR_READ_BYTES = 1 << 20


class Stream:
    """A stream whose next bytes can be looked at, and which ends after a given number of bytes.

    :param file: anything with read(n), which may return less.
    """

    def __init__(self, file: Any, max_bytes: int | None = None) -> None:
        self._file = file
        self._left = max_bytes
        self._head = b""

    def peek(self, count: int) -> bytes:
        """Return the next bytes without consuming them: as many as asked for, unless the stream ends."""
        while len(self._head) < count and (data := self._next(count - len(self._head))):
            self._head += data
        return self._head[:count]

    def read(self, count: int) -> bytes:
        """Return at least one and at most `count` bytes, or nothing at the end."""
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

    def _next(self, count: int) -> bytes:
        data = bytes(self._file.read(count if self._left is None else min(count, self._left)))
        if self._left is not None:
            self._left -= len(data)
        return data


def dumps(file: IO[bytes], max_bytes: int | None = None) -> Iterator[tuple[str | None, Stream]]:
    """Yield each dump in a compressed file or a tar archive: the member's name, if there is an archive, and its bytes.

    A stream can be read until the next is asked for.

    :param max_bytes: look at so many unpacked bytes only.
    :raises Exception: one of ERRORS.
    """
    stream = Stream(_unpacked(file), max_bytes)
    head = stream.peek(formats.HEAD_BYTES)
    if not formats.is_tar(head):
        if formats.is_dump(head):
            yield None, stream
        return
    tar_file: Any = stream  # a tar archive that is read in order needs no seek()
    with tarfile.open(fileobj=tar_file, mode="r|", bufsize=_TAR_READ_BYTES) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                member_stream = Stream(content)
                if formats.is_dump(member_stream.peek(formats.HEAD_BYTES)):
                    yield member.name, member_stream


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
