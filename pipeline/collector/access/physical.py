"""The ranges of physical memory in a core file, for a search before anything of its kernel is known."""

import functools
import re

from drgn import FaultError

from .. import formats

_ELF64 = b"\x7fELF\x02"


def ranges(path):
    """Return the start and end of each range of physical memory in a core, ascending; none if it is of another form.

    :raises OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        head = f.read(formats.HEAD_BYTES)
        if head.startswith(_ELF64):
            return _merge(_elf_ranges(f))
        if formats.is_kdump(head):
            return _kdump_ranges(formats.kdump_header(f), functools.partial(formats.read_at, f))
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
    segments, _ = formats.elf_segments(f)
    # The core of a process has virtual addresses only.
    if any(segment.physical for segment in segments) or not any(segment.virtual for segment in segments):
        for segment in segments:
            yield segment.physical, segment.physical + segment.file_bytes


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
    if header is None or header.bitmap_bytes > formats.MAX_TABLE_BYTES:
        return []
    bitmap = read(*header.page_bitmap)
    byte_bytes = 8 * header.block_bytes  # of memory for a byte of the bitmap
    return [(run.start() * byte_bytes, run.end() * byte_bytes) for run in re.finditer(rb"[^\0]+", bitmap)]


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
