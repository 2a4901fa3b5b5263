"""The header of a core file, inspected before drgn opens it: truncated, incomplete, or flattened for a pipe."""

import os
import struct
from collections import namedtuple

from .. import architectures, foreign
from ..status import CollectError

# struct disk_dump_header of makedumpfile: signature, version, utsname (six fields of 65 bytes), time, status.
_VERSION_OFFSET = 8
_SYSNAME_OFFSET = 12
_MACHINE_OFFSET = _SYSNAME_OFFSET + 4 * 65
_STATUS_OFFSET = 424
_DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
_EI_CLASS, _EI_DATA = 4, 5
_ELFCLASS64 = _ELFDATA2MSB = 2
_PT_LOAD = 1
# e_phnum of a core with more program headers than fit; their number is then in a section header.
_PN_XNUM = 0xFFFF


class CoreFile(namedtuple("CoreFile", "note machine size_bytes")):
    """The facts in a core file's header that an audit needs.

    note: warning for a reader of the audit, or None. machine: utsname.machine, for drgn: it takes the byte order of
    QEMU's ppc64 cores from a wrong header, and libkdumpfile ignores the machine where QEMU left the rest of utsname
    empty. None for other kdump-compressed cores. size_bytes: size of the file.
    """

    __slots__ = ()


def read_header(path):
    """Return the CoreFile of a path. A file that is not a core is left for drgn to refuse.

    :raises CollectError: ``bad_core``: the core has to be converted first.
    :raises OSError: the file cannot be read.
    """
    size_bytes = os.path.getsize(path)
    note = machine = None
    with open(path, "rb") as f:
        header = f.read(4096)
        if header.startswith(b"makedumpfile\0"):
            message = "%s: flattened for a pipe; rearrange it: makedumpfile -R NEW < %s" % (path, path)
            raise CollectError("bad_core", message)
        if header.startswith(b"KDUMP   ") and len(header) == 4096:
            name = header[_MACHINE_OFFSET : _MACHINE_OFFSET + 65].split(b"\0")[0].decode(errors="replace")
            if name:
                architectures.check(name, path)
            if not header[_SYSNAME_OFFSET]:
                machine = name
            # The header's version, at most 6, tells its byte order.
            prefix = "<" if header[_VERSION_OFFSET] else ">"
            if struct.unpack_from(prefix + "I", header, _STATUS_OFFSET)[0] & _DUMP_DH_COMPRESSED_INCOMPLETE:
                note = "the dump is incomplete: its disk was full"
        elif header.startswith(b"\x7fELF") and len(header) >= 64:
            machine = architectures.elf_core_machine(header, path)
            expected_bytes = _elf_size(f, header)
            if expected_bytes > size_bytes:
                note = "the core is truncated: %d of %d bytes" % (size_bytes, expected_bytes)
        else:
            foreign.check(header, path)
    return CoreFile(note, machine, size_bytes)


def _elf_size(f, header):
    """Return the file offset at which the last segment of a 64-bit ELF core ends, or 0 if unknown."""
    prefix = ">" if header[_EI_DATA] == _ELFDATA2MSB else "<"
    (table_offset,) = struct.unpack_from(prefix + "Q", header, 32)
    entry_bytes, count = struct.unpack_from(prefix + "2H", header, 54)
    if header[_EI_CLASS] != _ELFCLASS64 or count == _PN_XNUM or entry_bytes != 56:
        return 0
    f.seek(table_offset)
    program_headers = f.read(entry_bytes * count)
    end = table_offset + entry_bytes * count
    for position in range(0, len(program_headers) - entry_bytes + 1, entry_bytes):
        segment_type, _, offset, _, _, file_bytes = struct.unpack_from(prefix + "2I4Q", program_headers, position)
        if segment_type == _PT_LOAD:
            end = max(end, offset + file_bytes)
    return end
