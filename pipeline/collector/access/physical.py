"""The ranges of physical memory in a core file, for a search before anything of its kernel is known."""

import functools
import os
import re
import struct

from drgn import FaultError

from .. import formats

_ELF64 = b"\x7fELF\x02"
_PT_LOAD = 1
# e_phnum of a core with more program headers than fit; their number is then in sh_info of the first section header.
_PN_XNUM = 0xFFFF
_PROGRAM_HEADER_BYTES = 56
# Bounds the tables and bitmaps that are read, as two bitmaps of 16 TiB of memory take 1 GiB.
_MAX_TABLE_BYTES = 1 << 30


def ranges(path):
    """Return the start and end of each range of physical memory in a core, ascending; none if it is of another form.

    :raises OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        head = f.read(formats.HEAD_BYTES)
        if head.startswith(_ELF64):
            return _merge(_elf_ranges(f))
        if formats.is_kdump(head):
            return _kdump_ranges(formats.kdump_header(f), functools.partial(_read_at, f))
        if formats.is_flattened(head):
            try:
                return _kdump_ranges(
                    formats.kdump_header(formats.unflattened_start(f)), functools.partial(_read_flattened, f)
                )
            except EOFError:
                return []
    return []


def add_to(prog, path):
    """Make the physical memory of a core readable where drgn does not: an ELF core with one range, which starts at 0.

    Without a VMCOREINFO note drgn 0.3.0 takes a physical address of 0 for a missing one. QEMU, whose guests of s390x
    and of ppc64 without NUMA have one range, gives each range a virtual address equal to its physical one.
    """
    with open(path, "rb") as f:
        if f.read(len(_ELF64)) != _ELF64:
            return
        elf_ranges = _merge(_elf_ranges(f))
    if len(elf_ranges) != 1 or elf_ranges[0][0]:
        return
    try:
        prog.read(0, 1, True)
    except FaultError:
        _, end = elf_ranges[0]
        prog.add_memory_segment(0, end, lambda address, count, offset, _: prog.read(offset, count), physical=True)


def _elf_ranges(f):
    """Yield the start and end of each segment of physical memory in a 64-bit ELF core."""
    header = _read_at(f, 0, 64).ljust(64, b"\0")
    endian = "<" if header[5] == 1 else ">"
    table_offset, section_offset = struct.unpack_from(endian + "2Q", header, 32)
    entry_bytes, count = struct.unpack_from(endian + "2H", header, 54)
    if count == _PN_XNUM:
        (count,) = struct.unpack_from(endian + "I", _read_at(f, section_offset, 64).ljust(64, b"\0"), 44)
    if entry_bytes != _PROGRAM_HEADER_BYTES:
        return
    table = _read_at(f, table_offset, min(entry_bytes * count, _MAX_TABLE_BYTES))
    table = table[: len(table) // entry_bytes * entry_bytes]
    segments = [
        (virtual, physical, size)
        for kind, _, _, virtual, physical, size, _, _ in struct.iter_unpack(endian + "2I6Q", table)
        if kind == _PT_LOAD
    ]
    # The core of a process has virtual addresses only.
    if any(physical for _, physical, _ in segments) or not any(virtual for virtual, _, _ in segments):
        for _, physical, size in segments:
            yield physical, physical + size


def _merge(unordered_ranges):
    """Return ranges in ascending order, those that touch or overlap as one: a page may be in several segments."""
    merged = []
    for start, end in sorted(unordered_ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _kdump_ranges(header, read):
    """Return the ranges of a kdump-compressed core; they may include up to 7 pages before and after that are not in it.

    :param header: KdumpHeader, or None.
    :param read: function of an offset in the core and a size that returns the bytes there.
    """
    if header is None or header.bitmap_bytes > _MAX_TABLE_BYTES:
        return []
    # The second of the two bitmaps is of the pages that are in the file.
    bitmap = read(header.bitmap_offset, header.bitmap_bytes)[header.bitmap_bytes // 2 :]
    byte_bytes = 8 * header.block_bytes  # of memory for a byte of the bitmap
    return [(run.start() * byte_bytes, run.end() * byte_bytes) for run in re.finditer(rb"[^\0]+", bitmap)]


def _read_at(f, offset, size):
    f.seek(min(offset, os.fstat(f.fileno()).st_size))
    return f.read(size)


def _read_flattened(f, start, size):
    """Return bytes of a flattened core's start. QEMU writes the records of its pages after these."""
    content = bytearray(size)
    for offset, position, record_bytes in formats.records(f):
        if offset >= start + size:
            break
        f.seek(position)
        data = f.read(min(record_bytes, start + size - offset))[max(0, start - offset) :]
        destination = max(0, offset - start)
        content[destination : destination + len(data)] = data
    return bytes(content)
