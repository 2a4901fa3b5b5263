"""File formats of dumps, and of what they are packed in, by their first bytes. Importable without drgn."""

import errno
import io
import os
import stat
import struct
from collections import namedtuple

HEAD_BYTES = 512
"""First bytes of a file that tell its format: tar's magic number is at 257, and kdump's header has 444 bytes."""

PACKED = "Packed"
"""error_type of a core that has to be unpacked or rearranged first."""

# The flattened form (makedumpfile -F) is a header of a block and records: big-endian offset in the dump, size, data.
# The offset of the last record, which has no data, is -1. Source: makedumpfile.h.
_FLATTENED_MAGIC = b"makedumpfile\0"
FLATTENED_HEADER_BYTES = 4096
RECORD = struct.Struct(">2q")
END_RECORD_OFFSET = -1
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
# Programs that unpack with -dc, by magic number. The last is of a frame to skip, which pzstd writes first.
_PROGRAMS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (_LZ4_LEGACY_MAGIC, "lz4"),
    (b"\x50\x2a\x4d\x18", "zstd"),
)
_ELF_MAGIC = b"\x7fELF"
_ELF64_MAGIC = b"\x7fELF\x02"
_ELFDATA2MSB = 2
_ET_CORE = 4
_ELF_HEADER_BYTES = 64
_PROGRAM_HEADER_BYTES = 56
_PT_LOAD = 1
# e_phnum of a core with more program headers than fit; their number is then in sh_info of the first section.
_PN_XNUM = 0xFFFF
_SH_INFO_OFFSET = 44
# Bounds the tables that are read, as two bitmaps of 16 TiB of memory take 1 GiB.
MAX_TABLE_BYTES = 1 << 30
# Source: makedumpfile's diskdump_mod.h.
_KDUMP_MAGIC = (b"KDUMP   ", b"DISKDUMP")

UTS_FIELD_BYTES = 65
"""__NEW_UTS_LEN + 1, the size of each member of struct new_utsname."""

# struct disk_dump_header of 64-bit machines: signature, version, utsname (six fields of 65 bytes), time, status,
# block_size, sub_hdr_size and bitmap_blocks (in blocks), max_mapnr. It fills the first block.
_UTSNAME_OFFSET = 12
_STATUS_OFFSET = 424
_HEADER_BYTES = _STATUS_OFFSET + 20
_INCOMPLETE = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE
# Blocks are pages of the dumped kernel.
_BLOCK_BYTES = (1 << 12, 1 << 14, 1 << 16)
# struct kdump_sub_header, which starts the second block: phys_base, dump_level, split, start_pfn, end_pfn, offset and
# size of three notes; since version 6 also start_pfn_64, end_pfn_64, max_mapnr_64.
_SUB_HEADER = "Q2i8Q3Q"
_SUB_HEADER_BYTES = struct.calcsize("=" + _SUB_HEADER)


class KdumpHeader(
    namedtuple(
        "KdumpHeader",
        "order identity is_incomplete block_bytes notes_end bitmap_offset bitmap_bytes max_pfn split_pfns",
    )
):
    """The header and sub header of a kdump-compressed dump of a 64-bit machine.

    order: byte order, as of struct. identity: bytes that all parts of a split dump have in common. notes_end: offset at
    which its notes end, 0 without any. bitmap_offset, bitmap_bytes: both bitmaps together. max_pfn: number of page
    frames. split_pfns: first page frame and end of a part that makedumpfile --split wrote, else None.
    """

    __slots__ = ()

    @property
    def page_bitmap(self):
        """Offset and size of the bitmap of the pages in the dump: the second of two, or the only one."""
        half_bytes = self.bitmap_bytes // 2
        if self.max_pfn <= 8 * half_bytes:
            return self.bitmap_offset + half_bytes, half_bytes
        return self.bitmap_offset, self.bitmap_bytes


class Segment(namedtuple("Segment", "offset virtual physical file_bytes")):
    """A loadable segment of an ELF file: its offset in the file, its addresses, and its bytes in the file."""

    __slots__ = ()


def open_file(path):
    """Open a regular file for reading.

    :raises OSError: it cannot be opened, or is not a regular file; a FIFO would wait for a writer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return os.fdopen(descriptor, "rb")


def compression(head):
    """Return the program that unpacks a file with these first bytes, or None."""
    return next((program for magic, program in _PROGRAMS if head.startswith(magic)), None)


def is_legacy_lz4(head):
    """Whether a file with these first bytes is compressed in lz4's legacy frame, which pyarrow cannot read."""
    return head.startswith(_LZ4_LEGACY_MAGIC)


def is_tar(head):
    """Whether a file with these first bytes is a tar archive, POSIX's or GNU's."""
    return head[257:262] == b"ustar"


def is_dump(head):
    """Whether a file with these first bytes is an ELF core or a kdump-compressed one, flattened or not."""
    if head.startswith(_ELF_MAGIC) and len(head) >= 18:
        (e_type,) = struct.unpack_from(">H" if head[5] == _ELFDATA2MSB else "<H", head, 16)
        return e_type == _ET_CORE
    return is_kdump(head) or is_flattened(head)


def is_kdump(head):
    """Whether a file with these first bytes is a kdump-compressed dump."""
    return head.startswith(_KDUMP_MAGIC)


def is_flattened(head):
    """Whether a file with these first bytes is a dump that makedumpfile or QEMU flattened for a pipe."""
    return head.startswith(_FLATTENED_MAGIC)


def unflattened_start(file):
    """Return a file of the first blocks of a flattened dump: those with its headers; what has no record is zero."""
    start = bytearray(_BLOCK_BYTES[-1] + _SUB_HEADER_BYTES)
    for offset, position, size in records(file):
        if offset < len(start):
            file.seek(position)
            data = file.read(min(size, len(start) - offset))
            start[offset : offset + len(data)] = data
            header = kdump_header(io.BytesIO(start))
            if start.startswith(_ELF_MAGIC) or (header and offset <= header.block_bytes < offset + size):
                break
    return io.BytesIO(start)


def records(file):
    """Yield offset in the dump, position in the file and size of each record of a flattened dump up to the last.

    :raises EOFError: the last record is missing.
    """
    position = FLATTENED_HEADER_BYTES
    end = file.seek(0, io.SEEK_END)
    while position + RECORD.size <= end:
        file.seek(position)
        offset, size = RECORD.unpack(file.read(RECORD.size))
        position += RECORD.size
        if offset == END_RECORD_OFFSET:
            return
        if offset < 0 or not 0 < size <= end - position:
            break
        yield offset, position, size
        position += size
    raise EOFError


def read_at(file, offset, size):
    """Return the bytes of a file from an offset, as many as it has of them, at most MAX_TABLE_BYTES."""
    end = file.seek(0, io.SEEK_END)
    file.seek(min(offset, end))
    return file.read(min(size, max(0, end - offset), MAX_TABLE_BYTES))


def elf_segments(file):
    """Return the Segments of a 64-bit ELF file, and the offset at which their table ends, which may be past the file's.

    Of another file there are none, and 0.
    """
    header = read_at(file, 0, _ELF_HEADER_BYTES)
    if not header.startswith(_ELF64_MAGIC) or len(header) < _ELF_HEADER_BYTES:
        return [], 0
    order = ">" if header[5] == _ELFDATA2MSB else "<"
    table_offset, sections_offset = struct.unpack_from(order + "2Q", header, 32)
    entry_bytes, count = struct.unpack_from(order + "2H", header, 54)
    if entry_bytes != _PROGRAM_HEADER_BYTES:
        return [], 0
    if count == _PN_XNUM:
        (count,) = struct.unpack(order + "I", read_at(file, sections_offset + _SH_INFO_OFFSET, 4).ljust(4, b"\0"))
    table = read_at(file, table_offset, entry_bytes * count)
    segments = [
        Segment(offset, virtual, physical, file_bytes)
        for kind, _, offset, virtual, physical, file_bytes, _, _ in struct.iter_unpack(
            order + "2I6Q", table[: len(table) // entry_bytes * entry_bytes]
        )
        if kind == _PT_LOAD
    ]
    return segments, table_offset + entry_bytes * count


def utsname_fields(data, start):
    """Return the six members of the struct new_utsname at an offset in data, as bytes."""
    offsets = range(start, start + 6 * UTS_FIELD_BYTES, UTS_FIELD_BYTES)
    return [data[offset : offset + UTS_FIELD_BYTES].split(b"\0")[0] for offset in offsets]


def kdump_utsname(head):
    """Return the members sysname and machine of utsname, as text, in the first bytes of a kdump-compressed dump."""
    fields = utsname_fields(head, _UTSNAME_OFFSET)
    return fields[0].decode(errors="replace"), fields[4].decode(errors="replace")


def kdump_header(file):
    """Return the KdumpHeader of a file, or None if it has none."""
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    if not is_kdump(head) or len(head) < _HEADER_BYTES:
        return None
    for order in "<>":
        status, block_bytes, sub_blocks, bitmap_blocks, max_pfn = struct.unpack_from(
            order + "I2i2I", head, _STATUS_OFFSET
        )
        if block_bytes in _BLOCK_BYTES and sub_blocks > 0 and bitmap_blocks > 0:
            break
    else:
        return None
    file.seek(block_bytes)
    sub_header = file.read(_SUB_HEADER_BYTES).ljust(_SUB_HEADER_BYTES, b"\0")
    _, _, split, *values, start_pfn, end_pfn, max_pfn_64 = struct.unpack(order + _SUB_HEADER, sub_header)
    pfns, notes = values[:2], values[2:]
    if struct.unpack_from(order + "i", head, 8)[0] >= 6:
        max_pfn = max_pfn_64
    else:
        start_pfn, end_pfn = pfns
    return KdumpHeader(
        order,
        head,
        bool(status & _INCOMPLETE),
        block_bytes,
        max(offset + size for offset, size in zip(notes[::2], notes[1::2])),
        (1 + sub_blocks) * block_bytes,
        bitmap_blocks * block_bytes,
        max_pfn,
        (start_pfn, end_pfn) if split == 1 else None,
    )
