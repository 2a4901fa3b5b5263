"""A relocatable CPython of the user's, such as python-build-standalone's, packed for hosts without Python.

Left out is what an audit never loads: tests, headers, Tcl, installed packages, and in an ELF file what follows its
segments, which are symbols and debug info.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import re
import struct
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, NamedTuple

from pipeline.common.text import quote
from pipeline.inventory import packed

# Limits of one file that is sent, of all of them, and of the unpacked archive: several times what
# python-build-standalone has in its largest form, with debug info.
_MAX_FILE_BYTES = 128 << 20
_MAX_SENT_BYTES = 256 << 20
_MAX_ARCHIVE_BYTES = 4 << 30

_BLOCK_BYTES = 4096  # of a file system, to estimate the room on a host
_READ_BYTES = 1 << 16
_COMPRESSION_LEVEL = 6

# Numbers in an ELF file (elf.h).
_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le", 22: "s390x"}  # e_machine, and the name in uname -m
_PT_INTERP = 3

_INTERPRETER = re.compile(r"((?:.*/)?)bin/python(3\.\d{1,3})")
_NAME = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*", re.ASCII)
_GLIBC_LOADER = re.compile(r"/[\w./-]*/(ld-linux[\w.-]*|ld64\.so\.\d)", re.ASCII)
# Parts of lib/ and of lib/python3.N/ that are not sent. site-packages may hold a drgn.
_UNUSED_LIBRARY = re.compile(r"lib(tcl|tk)")
_UNUSED = re.compile(
    r"(test|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|site-packages|dist-packages|config-[^/]*)/"
    r"|(.*/)?__pycache__/|lib-dynload/(_test|_tkinter|_ctypes_test|xx)|.*\.(a|o)$"
)


class StandaloneError(ValueError):
    """A file is not a CPython that can be sent; the message is one line."""


class Build(NamedTuple):
    """The CPython in an archive.

    - version: such as ``3.12``;
    - arch: architecture as in ``uname -m``;
    - loader: path of the dynamic loader that it needs on a host;
    - prefix: directory of bin/ in the archive, empty or with a slash at its end;
    - needs_libpython: whether bin/python3 loads lib/libpython3.N.so.
    """

    version: str
    arch: str
    loader: str
    prefix: str
    needs_libpython: bool

    def sent_name(self, name: str) -> str | None:
        """Return the path on a host of a member of the archive, or None if it is not sent."""
        if not name.startswith(self.prefix):
            return None
        name = name.removeprefix(self.prefix)
        if name == f"bin/python{self.version}":
            return "bin/python3"
        if not _NAME.fullmatch(name):
            return None
        directory, _, base = name.rpartition("/")
        if directory == "lib" and ".so" in base:
            is_unused = _UNUSED_LIBRARY.match(base) or (base.startswith("libpython") and not self.needs_libpython)
            return None if is_unused else name
        library = f"lib/python{self.version}/"
        return name if name.startswith(library) and not _UNUSED.match(name, len(library)) else None


class Package(NamedTuple):
    """A build as it is sent: a tar archive of bin/python3 and lib.

    - file: the archive compressed with gzip; it has no name, so that it ends with the process;
    - gzip_bytes, tar_bytes: size of the archive, compressed and not;
    - disk_bytes: room that it takes on a host.
    """

    build: Build
    file: IO[bytes]
    gzip_bytes: int
    tar_bytes: int
    disk_bytes: int

    @property
    def path(self) -> str:
        """Path under which other processes of this user can open the file."""
        return f"/proc/{os.getpid()}/fd/{self.file.fileno()}"


def look(path: str) -> Build:
    """Return the CPython in a tar archive, compressed or not.

    :raises StandaloneError: it has none, or one for which drgn has no wheels.
    """
    with _archive(path) as archive:
        for member in archive:
            match = _INTERPRETER.fullmatch(member.name)
            if match and member.isreg():
                return _build(match[1], match[2], _content(archive, member))
        raise StandaloneError("no bin/python3.N in it; give an archive of python-build-standalone (install_only)")


def package(path: str) -> Package:
    """Return the CPython in a tar archive as it is sent; it is packed once in the life of this process.

    :raises StandaloneError: as for `look`.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise StandaloneError(f"{path}: {error.strerror}") from error
    with _lock:
        return _package(path, status.st_mtime_ns, status.st_size)


_lock = threading.Lock()


@functools.cache
def _package(path: str, mtime_ns: int, size_bytes: int) -> Package:
    build = look(path)
    file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as this process lives
    names, content_bytes = set(), 0
    with gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, file, 0) as stream:
        with _archive(path) as archive, tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as sent:
            for info, content in _sent_members(archive, build):
                if info.name not in names:
                    sent.addfile(info, io.BytesIO(content))
                    names.add(info.name)
                    content_bytes += info.size
                    if content_bytes > _MAX_SENT_BYTES:
                        raise StandaloneError(f"more than {_MAX_SENT_BYTES >> 20} MiB of it would be sent")
            if f"lib/python{build.version}/os.py" not in names:
                raise StandaloneError(f"no {build.prefix}lib/python{build.version}/os.py in it")
        tar_bytes = stream.tell()
    file.flush()
    return Package(build, file, file.tell(), tar_bytes, content_bytes + _BLOCK_BYTES * len(names))


def _sent_members(archive: tarfile.TarFile, build: Build) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield each file and link that is sent, with the content of a file."""
    for member in archive:
        name = build.sent_name(member.name)
        if name is None:
            continue
        info = tarfile.TarInfo(name)
        if member.issym() and _NAME.fullmatch(member.linkname):
            info.type, info.linkname = tarfile.SYMTYPE, member.linkname
            yield info, b""
        elif member.isreg():
            content = _content(archive, member)
            info.size, info.mode = len(content), 0o755 if name == "bin/python3" else 0o644
            yield info, content


@contextlib.contextmanager
def _archive(path: str) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, compressed or not, to be read once from its start to its end.

    :raises StandaloneError: it cannot be opened or, while the block lasts, read.
    """
    try:
        with open(path, "rb") as file, packed.archive(file, _MAX_ARCHIVE_BYTES) as archive:
            yield archive
    except StandaloneError as error:
        raise StandaloneError(f"{path}: {error}") from error
    except packed.ERRORS as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or "it ends early"
        raise StandaloneError(f"{path}: {reason}") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return a file of an archive, without what an ELF file has behind its segments."""
    file = archive.extractfile(member)
    if file is None or member.size > _MAX_FILE_BYTES:
        raise StandaloneError(f"{quote(member.name)} has {member.size >> 20} MiB")
    content = b"".join(iter(functools.partial(file.read, _READ_BYTES), b""))
    segments = _segments(content)
    if not segments:
        return content
    elf = bytearray(content[: max(offset + size for _, offset, size in segments)])
    # No section headers: e_shoff, then e_shentsize, e_shnum and e_shstrndx.
    elf[40:48], elf[58:64] = bytes(8), bytes(6)
    return bytes(elf)


def _build(prefix: str, version: str, interpreter: bytes) -> Build:
    """Return the build whose interpreter is this ELF file."""
    segments = _segments(interpreter)
    if not segments:
        raise StandaloneError(f"its python{version} is not an ELF file of 64 bits")
    (machine,) = struct.unpack_from(_byte_order(interpreter) + "H", interpreter, 18)
    if machine not in _MACHINES:
        raise StandaloneError(f"its Python is for a machine that is not supported (e_machine {machine})")
    loaders = [interpreter[offset : offset + size] for kind, offset, size in segments if kind == _PT_INTERP]
    loader = loaders[0].rstrip(b"\0").decode(errors="replace") if loaders else ""
    if not _GLIBC_LOADER.fullmatch(loader):
        start = f"is started by {quote(loader)}" if loader else "is linked statically"
        raise StandaloneError(f"its Python {start}; drgn needs a build for glibc")
    return Build(version, _MACHINES[machine], loader, prefix, f"libpython{version}.so".encode() in interpreter)


def _segments(content: bytes) -> list[tuple[int, int, int]]:
    """Return type, offset and size of each segment of an ELF file of 64 bits, none for another file.

    :raises StandaloneError: it is damaged.
    """
    if not content.startswith(b"\x7fELF\x02"):
        return []
    try:
        order = _byte_order(content)
        (table,) = struct.unpack_from(order + "Q", content, 32)
        entry_bytes, count = struct.unpack_from(order + "HH", content, 54)
        segments = []
        for entry in range(table, table + count * entry_bytes, entry_bytes):
            kind, _, offset, _, _, size = struct.unpack_from(order + "IIQQQQ", content, entry)
            segments.append((kind, offset, size))
    except (struct.error, ValueError, OverflowError, IndexError) as error:
        raise StandaloneError("an ELF file in it is damaged") from error
    return segments


def _byte_order(elf: bytes) -> str:
    return ">" if elf[5] == 2 else "<"
