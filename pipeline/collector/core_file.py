"""What a core file says of its own state, before drgn opens it: cut off, incomplete, or flattened for a pipe."""

import os
import struct

from .status import CollectError

# struct disk_dump_header of makedumpfile: status follows the signature, the version, utsname and the time.
_STATUS_OFFSET = 424
_DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
_PT_LOAD = 1
# e_phnum of a core with more program headers than fit; the number is then in a section header.
_PN_XNUM = 0xFFFF


def note(path):
    """Return what a reader of the audit has to know of the core file, or None.

    :raises CollectError: ``bad_core``: no reader can open it as it is. :raises OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(4096)
        if head.startswith(b"makedumpfile\0"):
            message = "%s: flattened for a pipe; rearrange it: makedumpfile -R NEW < %s" % (path, path)
            raise CollectError("bad_core", message)
        if head.startswith(b"KDUMP   ") and len(head) == 4096:
            (status,) = struct.unpack_from("<I", head, _STATUS_OFFSET)
            return "the dump was cut short by its disk" if status & _DUMP_DH_COMPRESSED_INCOMPLETE else None
        if head.startswith(b"\x7fELF\x02\x01") and len(head) >= 64:
            end = _elf_end(f, head)
            if end > size:
                return "the core is truncated: %d of %d bytes" % (size, end)
    return None


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
