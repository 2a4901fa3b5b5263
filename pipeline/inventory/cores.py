"""Cores below a directory, recognized by their content, and unique names for them."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from pipeline.common.text import printable, quote

# File names that kdump gives every core, which do not tell machines apart.
_KDUMP_NAMES = {"vmcore", "vmcore-incomplete", "vmcore.flat"}
# The first two: makedumpfile's diskdump_mod.h; the last: its flattened form (makedumpfile -F).
_DUMP_MAGIC = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0")
_ELFDATA2MSB = 2
_ET_CORE = 4


def search(directory: str, errors: list[str]) -> tuple[list[str], int]:
    """Return the paths of the cores below a directory, sorted, and the number of other files.

    An unreadable file counts as a core: a row with the status `denied` is better than no row.
    """

    def add_error(error: OSError) -> None:
        errors.append(f"cannot search {quote(error.filename)}: {error.strerror}; run as a user who may read it")

    paths = []
    other_file_count = 0
    for subdirectory, _, files in os.walk(directory, onerror=add_error):
        for file in files:
            path = os.path.join(subdirectory, file)
            if _is_core(path):
                paths.append(path)
            else:
                other_file_count += 1
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


def _is_core(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(18)
    except PermissionError:
        return True
    except OSError:
        return False
    if head[:4] == b"\x7fELF" and len(head) == 18:
        (e_type,) = struct.unpack_from(">H" if head[5] == _ELFDATA2MSB else "<H", head, 16)
        return bool(e_type == _ET_CORE)
    return head.startswith(_DUMP_MAGIC)
