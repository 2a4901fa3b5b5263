"""The cores below a directory, told by what is in the files, and the names that tell them apart."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from pipeline.common.text import printable, quote

# What kdump calls what it saves: such a name tells no two machines apart.
_KDUMP_NAMES = {"vmcore", "vmcore-incomplete", "vmcore.flat"}
# The first two: makedumpfile's diskdump_mod.h; the last: its flattened form (makedumpfile -F).
_DUMP_MAGIC = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0")
_ELFDATA2MSB = 2
_ET_CORE = 4


def search(directory: str, errors: list[str]) -> tuple[list[str], int]:
    """Return the paths of the cores below a directory, sorted, and the number of other files.

    A file that may not be read counts as a core: its row will say `denied`, which is better than no row.
    """

    def unreadable(error: OSError) -> None:
        errors.append(f"cannot search {quote(error.filename)}: {error.strerror}; run as a user who may")

    paths = []
    others = 0
    for folder, _, files in os.walk(directory, onerror=unreadable):
        for file in files:
            path = os.path.join(folder, file)
            if _is_core(path):
                paths.append(path)
            else:
                others += 1
    return sorted(paths), others


def names(paths: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Return for each path its part below the common directory of the roots, printable.

    Where one would be a bare `vmcore`, all start one folder further up.
    """
    if not paths:
        return []
    base = os.path.commonpath(roots)
    below = [os.path.relpath(path, base) for path in paths]
    if not _KDUMP_NAMES.isdisjoint(below):
        below = [os.path.join(os.path.basename(base), name) for name in below]
    return [printable(name) for name in below]


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
