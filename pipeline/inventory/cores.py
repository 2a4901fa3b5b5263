"""Cores below a directory, recognized by their content or their name, and unique names for them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import IO

from pipeline.collector import foreign, formats
from pipeline.common.text import printable
from pipeline.inventory import packed

# File names that kdump gives every core, which do not tell machines apart.
_KDUMP_NAMES = {"vmcore", "vmcore-incomplete", "vmcore.flat"}
# Names that kexec-tools, kdump-tools and users give to dumps: such a file is a row, whatever is in it. Files beside a
# dump have such names too: vmcore-dmesg.txt, vmcore.md5.
_DUMP_NAME = re.compile(r"vmcore([-._].*)?|dump\.\d{8,}.*|dump-incomplete|.+\.(vmcore|kdump)(\.\w+)?", re.DOTALL)
_COMPANION_NAME = re.compile(r".*dmesg.*|.*\.(txt|log|json|ya?ml|md5|sha\d+|asc|sig|vmcoreinfo)", re.DOTALL)
# Unpacked bytes of an archive in which a core is looked for: what kdump writes before it, a dmesg, has 1 MB at most.
_MAX_ARCHIVE_BYTES = 4 << 20


def search(directory: str) -> tuple[list[str], int]:
    """Return the paths of the cores below a directory, sorted, and the number of other files.

    An unreadable file or subdirectory counts as a core: a row with the status `denied` is better than no row. A file
    with several paths counts once, as do the parts of a dump that makedumpfile --split wrote.
    """
    paths = []
    other_file_count = 0
    known: set[object] = set()
    for path in _files(directory):
        identity = _identity(path)
        if identity is None:
            other_file_count += 1
        elif identity not in known:
            known.add(identity)
            paths.append(path)
    return sorted(paths), other_file_count


def names(paths: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Return each path relative to the common directory of the roots, printable.

    If one would be only `vmcore` or another of kdump's names, all start with the name of the common directory.
    """
    if not paths:
        return []
    base = os.path.commonpath(roots)
    relative_paths = [os.path.relpath(path, base) for path in paths]
    if not _KDUMP_NAMES.isdisjoint(relative_paths):
        relative_paths = [os.path.join(os.path.basename(base), path) for path in relative_paths]
    return [printable(path) for path in relative_paths]


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
    """
    has_dump_name = bool(_DUMP_NAME.fullmatch(name := os.path.basename(path)) and not _COMPANION_NAME.fullmatch(name))
    try:
        status = os.stat(path)
        file_id = status.st_dev, status.st_ino
        if stat.S_ISREG(status.st_mode):  # open(2) of a device may have effects
            # O_NONBLOCK: the file may have been replaced by a FIFO.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                file_id = status.st_dev, status.st_ino
                head = file.read(formats.HEAD_BYTES) if stat.S_ISREG(status.st_mode) else b""
                if formats.is_kdump(head) and (header := formats.kdump_header(file)) and header.split_pfns:
                    return os.path.dirname(path), header.identity
                is_dump = formats.is_dump(head) or foreign.recognize(head, name) is not None
                if is_dump or (packed.is_packed(head) and _has_dump(file)):
                    return file_id
    except PermissionError:
        return path
    except OSError:  # a link to nothing, or a file that was removed meanwhile
        return path if has_dump_name else None
    return file_id if has_dump_name or stat.S_ISDIR(status.st_mode) else None


def _has_dump(file: IO[bytes]) -> bool:
    try:
        return any(True for _ in packed.dumps(file, _MAX_ARCHIVE_BYTES))
    except packed.ERRORS:
        return False
