"""The forms in which people keep a dump, made from a small one: flattened, in parts, cut off."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.lab.reduce import read_kdump

BLOCK = 4096
"""Size of the blocks that a kdump-compressed dump of a kernel with 4-KiB pages begins with."""
UTSNAME, UTSNAME_FIELD, MACHINE_FIELD = 12, 65, 4
STATUS = 424
INCOMPLETE = 0x8
SPLIT, START_PFN, END_PFN = BLOCK + 12, BLOCK + 80, BLOCK + 88


SIGNATURE_END = slice(len("makedumpfile\0"), 16)
"""The bytes of a flattened dump's signature that makedumpfile does not write."""


def flatten(dump: bytes, *, record_bytes: int = 1 << 16, reverse: bool = False, end: bool = True) -> bytes:
    """The flattened form of a dump, as makedumpfile -F describes it: a header, records, an end record."""
    offsets = range(0, len(dump), record_bytes)
    records = [(offset, dump[offset : offset + record_bytes]) for offset in offsets]
    return _flattened(reversed(records) if reverse else records, end)


def flatten_like_qemu(dump: bytes) -> bytes:
    """The flattened form of a kdump-compressed dump as QEMU 7.2's dump-guest-memory writes it.

    The first record is the header without its padding, the second the sub header; utsname has the machine only.
    """
    machine = UTSNAME + MACHINE_FIELD * UTSNAME_FIELD
    header = bytearray(dump[:464])
    header[UTSNAME:machine] = bytes(machine - UTSNAME)
    records = [(0, bytes(header)), (BLOCK, dump[BLOCK : BLOCK + 104]), (BLOCK + 104, dump[BLOCK + 104 : 2 * BLOCK])]
    records += [(offset, dump[offset : offset + BLOCK]) for offset in range(2 * BLOCK, len(dump), BLOCK)]
    return _flattened(records, True)


def _flattened(records: Iterator[tuple[int, bytes]] | list[tuple[int, bytes]], end: bool) -> bytes:
    parts = [(b"makedumpfile".ljust(16, b"\0") + struct.pack(">2q", 1, 1)).ljust(BLOCK, b"\0")]
    for offset, data in records:
        parts += [struct.pack(">2q", offset, len(data)), data]
    return b"".join(parts) + (struct.pack(">2q", -1, -1) if end else b"")


def flatten_like_makedumpfile(dump: bytes) -> bytes:
    """The flattened form of a dump with what makedumpfile's stack had at the end of the signature."""
    data = bytearray(flatten(dump))
    data[SIGNATURE_END] = b"\x8b\xff\xff"
    return bytes(data)


def part(dump: bytes, first_pfn: int, end_pfn: int) -> bytes:
    """A kdump-compressed dump with the header of a part that makedumpfile --split writes."""
    data = bytearray(dump)
    struct.pack_into("<I", data, SPLIT, 1)
    struct.pack_into("<Q", data, START_PFN, first_pfn)
    struct.pack_into("<Q", data, END_PFN, end_pfn)
    return bytes(data)


def incomplete(dump: bytes) -> bytes:
    """A kdump-compressed dump with the flag that makedumpfile sets when its disk is full."""
    data = bytearray(dump)
    (status,) = struct.unpack_from("<I", data, STATUS)
    struct.pack_into("<I", data, STATUS, status | INCOMPLETE)
    return bytes(data)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rename_node(core: Path, name: str, path: Path) -> Path:
    """Write a bundled core to a path with another node name, in the kernel's memory and in the header."""
    small = read_kdump(core)
    sysname, node_name = small.utsname[:UTSNAME_FIELD], small.utsname[UTSNAME_FIELD : 2 * UTSNAME_FIELD]
    new_name = name.encode().ljust(UTSNAME_FIELD, b"\0")
    # struct uts_namespace has them side by side, as the header has.
    pages = {pfn: page.replace(sysname + node_name, sysname + new_name) for pfn, page in small.pages.items()}
    assert pages != small.pages
    path.parent.mkdir(parents=True, exist_ok=True)
    utsname = sysname + new_name + small.utsname[2 * UTSNAME_FIELD :]
    dataclasses.replace(small, pages=pages, utsname=utsname).write_kdump(path)
    return path
