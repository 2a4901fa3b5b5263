"""What a core file says of its own state, before drgn opens it: cut off, incomplete, or flattened for a pipe."""

import os
import struct
from collections import namedtuple

from ..status import CollectError

# struct disk_dump_header of makedumpfile: signature, version, utsname (six times 65 bytes), time, status.
_SYSNAME_OFFSET = 12
_MACHINE_OFFSET = _SYSNAME_OFFSET + 4 * 65
_STATUS_OFFSET = 424
_DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
_PT_LOAD = 1
# e_phnum of a core with more program headers than fit; the number is then in a section header.
_PN_XNUM = 0xFFFF


class CoreFile(namedtuple("CoreFile", "note machine")):
    """What a core file says of itself.

    note: what a reader of the audit has to know of it, or None. machine: utsname.machine of a header from which
    libkdumpfile does not take it, as QEMU leaves the rest of utsname empty; else None.
    """

    __slots__ = ()


def look(path):
    """Return the CoreFile of a path; what is no core is left for drgn to refuse.

    :raises CollectError: ``bad_core``: no reader can open it as it is. :raises OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    note = machine = None
    with open(path, "rb") as f:
        head = f.read(4096)
        if head.startswith(b"makedumpfile\0"):
            message = "%s: flattened for a pipe; rearrange it: makedumpfile -R NEW < %s" % (path, path)
            raise CollectError("bad_core", message)
        if head.startswith(b"KDUMP   ") and len(head) == 4096:
            if not head[_SYSNAME_OFFSET]:
                machine = head[_MACHINE_OFFSET : _MACHINE_OFFSET + 65].split(b"\0")[0].decode(errors="replace")
            if struct.unpack_from("<I", head, _STATUS_OFFSET)[0] & _DUMP_DH_COMPRESSED_INCOMPLETE:
                note = "the dump was cut short by its disk"
        elif head.startswith(b"\x7fELF\x02\x01") and len(head) >= 64:
            end = _elf_end(f, head)
            if end > size:
                note = "the core is truncated: %d of %d bytes" % (size, end)
    return CoreFile(note, machine)


def _elf_end(f, head):
    """Return where the last segment of a 64-bit little-endian ELF core ends in the file."""
    (table,) = struct.unpack_from("<Q", head, 32)
    entry_bytes, count = struct.unpack_from("<2H", head, 54)
    if count == _PN_XNUM or entry_bytes != 56:
        return 0
    f.seek(table)
    headers = f.read(entry_bytes * count)
    end = table + entry_bytes * count
    for at in range(0, len(headers) - entry_bytes + 1, entry_bytes):
        kind, _, offset, _, _, file_bytes = struct.unpack_from("<2I4Q", headers, at)
        if kind == _PT_LOAD:
            end = max(end, offset + file_bytes)
    return end
