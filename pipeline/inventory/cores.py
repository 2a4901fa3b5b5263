"""Cores below a directory, recognized by their content or their name, and unique names for them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import IO

from pipeline.collector import foreign, formats
from pipeline.common.text import printable_names
from pipeline.inventory import packed

# File names that kdump gives every core, which do not tell machines apart.
_KDUMP_NAMES = {"vmcore", "vmcore-incomplete", "vmcore.flat"}
# Names that kexec-tools, kdump-tools and users give to dumps: such a file is a row, whatever is in it. Files beside a
# dump have such names too: vmcore-dmesg.txt, vmcore.md5.
_DUMP_NAME = re.compile(r"vmcore([-._].*)?|dump\.\d{8,}.*|dump-incomplete|.+\.(vmcore|kdump)(\.\w+)?", re.DOTALL)
_COMPANION_NAME = re.compile(r".*dmesg.*|.*\.(txt|log|json|ya?ml|md5|sha\d+|asc|sig|vmcoreinfo)", re.DOTALL)
# Names of archives of crashes. Such an archive is a row unless all of it was searched and has no dump.
_ARCHIVE_NAME = re.compile(r"(.*[-._])?(crash|vmcore|kdump)([-._].*)?", re.DOTALL | re.IGNORECASE)
# Limits of the search in an archive, so that it takes a second or two. A megabyte unpacks in 4 ms (zstd) to 0.1 s
# (bzip2); what is skipped in an uncompressed archive is not read. A member takes 0.1 ms.
_MAX_ARCHIVE_BYTES = 16 << 20
_MAX_ARCHIVE_MEMBERS = 10_000


class _UnsearchedError(Exception):
    """A compressed file or an archive is damaged or exceeds the limits, and no dump was found before."""


def search(directory: str) -> tuple[list[str], int, int]:
    """Return the paths of the cores below a directory, sorted, and how many other files and unsearched ones there are.

    An unsearched file is an archive that is damaged, or larger than what is searched. An unreadable file or
    subdirectory counts as a core: a row with the status `denied` is better than no row. A file with several paths
    counts once, as do the parts of a dump that makedumpfile --split wrote.
    """
    paths = []
    other_file_count = unsearched_count = 0
    known: set[object] = set()
    for path in _files(directory):
        try:
            identity = _identity(path)
        except _UnsearchedError:
            unsearched_count += 1
            continue
        if identity is None:
            other_file_count += 1
        elif identity not in known:
            known.add(identity)
            paths.append(path)
    return sorted(paths), other_file_count, unsearched_count


def names(paths: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Return each path relative to the common directory of the roots, printable, and different if the paths are.

    If one would be only `vmcore` or another of kdump's names, all start with the name of the common directory.
    """
    if not paths:
        return []
    base = os.path.commonpath(roots)
    relative_paths = [os.path.relpath(path, base) for path in paths]
    if not _KDUMP_NAMES.isdisjoint(relative_paths):
        relative_paths = [os.path.join(os.path.basename(base), path) for path in relative_paths]
    return printable_names(relative_paths)


def _files(directory: str) -> list[str]:
    """Return the files below a directory, sorted, links last, and the subdirectories that cannot be read.

    Links to directories are not followed, as by find(1).
    """
    files: list[str] = []
    links: list[str] = []
    for folder, _, file_names in os.walk(directory, onerror=lambda error: files.append(error.filename)):
        for path in (os.path.join(folder, name) for name in file_names):
            (links if os.path.islink(path) else files).append(path)
    return sorted(files) + sorted(links)


def _identity(path: str) -> object:
    """Return what tells a core from others, or None for another file.

    It is the same for all links to a file, and for all parts of a split dump in one directory.

    :raises _UnsearchedError: the file may have a dump in it.
    """
    name = os.path.basename(path)
    has_dump_name = bool(_DUMP_NAME.fullmatch(name) and not _COMPANION_NAME.fullmatch(name))
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):  # open(2) of a device may have effects
            # O_NONBLOCK: the file may have been replaced by a FIFO.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and (identity := _content_identity(file, path, status)):
                    return identity
    except PermissionError:
        return path
    except OSError:  # a link to nothing, or a file that was removed meanwhile
        return path if has_dump_name else None
    except _UnsearchedError:
        if not has_dump_name and not _ARCHIVE_NAME.fullmatch(name):
            raise
        has_dump_name = True
    return (status.st_dev, status.st_ino) if has_dump_name or stat.S_ISDIR(status.st_mode) else None


def _content_identity(file: IO[bytes], path: str, status: os.stat_result) -> object:
    """Return the identity of a regular file that is a core by its content, or None.

    :raises _UnsearchedError: as for `_identity`.
    """
    head = file.read(formats.HEAD_BYTES)
    if formats.is_kdump(head) and (header := formats.kdump_header(file)) and header.split_pfns:
        return os.path.dirname(path), header.identity
    is_dump = formats.is_dump(head) or foreign.recognize(head, path) is not None or formats.is_legacy_lz4(head)
    if is_dump or (packed.is_packed(head) and _has_dump(file)):
        return status.st_dev, status.st_ino
    return None


def _has_dump(file: IO[bytes]) -> bool:
    """Whether there is a dump in a compressed file or an archive.

    :raises _UnsearchedError: there is none up to the limits or the damage.
    """
    try:
        return any(True for _ in packed.dumps(file, _MAX_ARCHIVE_BYTES, _MAX_ARCHIVE_MEMBERS))
    except (*packed.ERRORS, MemoryError) as error:
        raise _UnsearchedError from error
