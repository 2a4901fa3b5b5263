"""Reduce a full core to the small core of the repository: only the physical pages that an audit reads.

The small core is kdump-compressed, which drgn opens directly, or a sparse ELF core of the same pages. Any other page is
a hole: reading it raises drgn.FaultError in both formats and never gives zeros, so a test cannot pass on missing
memory. (libkdumpfile could fill holes with zeros, by its attribute file.zero_excluded; drgn 0.3.0 leaves that off.)
The same full core gives the same bytes.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drgn import Architecture, FaultError, Platform, Program

PAGE = 4096
EM_X86_64, EM_AARCH64 = 62, 183
ARCHITECTURES = {EM_X86_64: Architecture.X86_64, EM_AARCH64: Architecture.AARCH64}
MACHINES = {b"x86_64": EM_X86_64, b"aarch64": EM_AARCH64}
"""ELF machine number by utsname.machine."""
PT_LOAD, PT_NOTE = 1, 4
NO_ADDRESS = 2**64 - 1

ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE_HEADER = struct.Struct("<III")


class FullCore:
    """An ELF core of physical memory, as QEMU's dump-guest-memory writes it; it can record the pages that are read."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _, _, self.machine, _, _, table, _, _, _, size, count, _, _, _ = ELF_HEADER.unpack_from(self.file)
        self.vmcoreinfo = b""
        self.runs: list[tuple[int, int, int]] = []
        """Runs of memory: first physical address, end address, offset in the file."""
        for header in range(table, table + size * count, size):
            kind, _, offset, _, address, file_size, _, _ = PROGRAM_HEADER.unpack_from(self.file, header)
            if kind == PT_LOAD:
                self.runs.append((address, address + file_size, offset))
            elif kind == PT_NOTE:
                self.vmcoreinfo = dict(notes(self.file[offset : offset + file_size]))[b"VMCOREINFO"]

    def read(self, address: int, count: int) -> bytes:
        """Return the bytes at a physical address.

        :raises FaultError: the core has no memory there.
        """
        for start, end, offset in self.runs:
            if start <= address and address + count <= end:
                file_offset = offset + address - start
                return self.file[file_offset : file_offset + count]
        raise FaultError("not in the core", address)

    def program(self, read_frames: set[int] | None = None) -> Program:
        """A drgn program on this core, without types and symbols; it adds the page frames that it reads to the set.

        Unlike a program that opens the file, it has physical memory only. QEMU gives every PT_LOAD a virtual address
        equal to the physical one, with which drgn would read physical page 0 through a NULL pointer.
        """

        def read(address: int, count: int, offset: int, physical: bool) -> bytes:
            if read_frames is not None:
                read_frames.update(range(address // PAGE, (address + count - 1) // PAGE + 1))
            return self.read(address, count)

        program = Program(Platform(ARCHITECTURES[self.machine]))
        for start, end, _ in self.runs:
            program.add_memory_segment(start, end - start, read, physical=True)
        program.set_linux_kernel_custom(self.vmcoreinfo, is_live=False)
        return program

    def frames_read_by(self, walk: Callable[[Program], object]) -> set[int]:
        """The page frames of this core that `walk` reads."""
        frames: set[int] = set()
        walk(self.program(frames))
        return frames

    def small(self, frames: Iterable[int]) -> SmallCore:
        """The small core of these page frames."""
        pages = {frame: self.read(frame * PAGE, PAGE) for frame in sorted(frames)}
        # Runs without any of these pages are the firmware's ROM below 4 GB. No audit or reader of the core needs them.
        memory = [
            (start // PAGE, end // PAGE)
            for start, end, _ in self.runs
            if any(start <= frame * PAGE < end for frame in pages)
        ]
        return SmallCore(self.machine, self.vmcoreinfo, self._utsname(), memory, pages)

    def _utsname(self) -> bytes:
        """The kernel's struct new_utsname: six strings of 65 bytes; the first is "Linux"."""
        fields = dict(line.split(b"=", 1) for line in self.vmcoreinfo.splitlines() if b"=" in line)
        namespace = self.program().read(int(fields[b"SYMBOL(init_uts_ns)"], 16), 1024)
        start = namespace.index(b"Linux\0")
        return bytes(namespace[start : start + 6 * 65])


@dataclass(frozen=True)
class SmallCore:
    """Some pages of a core, and the facts about the whole core that the file formats need."""

    machine: int
    """ELF machine number (EM_*)."""
    vmcoreinfo: bytes
    utsname: bytes
    memory: list[tuple[int, int]]
    """Ranges of page frames of the machine's memory as (first, end), ascending."""
    pages: dict[int, bytes]
    """Content by page frame, ascending."""

    def write_elf(self, path: Path) -> None:
        """Write an ELF core with a PT_LOAD for each run of neighbouring pages."""
        runs = list(neighbours(self.pages))
        note = vmcoreinfo_note(self.vmcoreinfo)
        notes_offset = ELF_HEADER.size + PROGRAM_HEADER.size * (1 + len(runs))
        offset = align(notes_offset + len(note), PAGE)
        core_type, version = 4, 1
        head = ELF_HEADER.pack(
            b"\x7fELF\x02\x01\x01", core_type, self.machine, version, 0, ELF_HEADER.size, 0, 0,
            ELF_HEADER.size, PROGRAM_HEADER.size, 1 + len(runs), 0, 0, 0,
        )  # fmt: skip
        head += PROGRAM_HEADER.pack(PT_NOTE, 0, notes_offset, 0, 0, len(note), len(note), 0)
        for first, count in runs:
            size = count * PAGE
            head += PROGRAM_HEADER.pack(PT_LOAD, 0, offset, NO_ADDRESS, first * PAGE, size, size, 0)
            offset += size
        head += note
        with path.open("wb") as file:
            file.write(head.ljust(align(len(head), PAGE), b"\0"))
            file.writelines(self.pages.values())

    def write_kdump(self, path: Path) -> None:
        """Write a kdump-compressed core; equal pages share their data."""
        end = max(end for _, end in self.memory)
        memory_bitmap, file_bitmap = bytearray(align(end, 8 * PAGE) // 8), bytearray(align(end, 8 * PAGE) // 8)
        for frame in itertools.chain.from_iterable(range(*run) for run in self.memory):
            memory_bitmap[frame // 8] |= 1 << frame % 8
        for frame in self.pages:
            file_bitmap[frame // 8] |= 1 << frame % 8
        note = vmcoreinfo_note(self.vmcoreinfo)
        sub_blocks = align(KDUMP_SUB_HEADER.size + len(note), PAGE) // PAGE
        bitmap_blocks = len(memory_bitmap + file_bitmap) // PAGE
        offset = (1 + sub_blocks + bitmap_blocks) * PAGE + len(self.pages) * PAGE_DESCRIPTOR.size
        descriptors: dict[bytes, bytes] = {}
        data = []
        for page in self.pages.values():
            if page not in descriptors:
                zlib_data = zlib.compress(page, 9)
                flags = ZLIB if len(zlib_data) < PAGE else 0
                data.append(zlib_data if flags else page)
                descriptors[page] = PAGE_DESCRIPTOR.pack(offset, len(data[-1]), flags, 0)
                offset += len(data[-1])
        notes_offset, dump_level = PAGE + KDUMP_SUB_HEADER.size, 31
        header = KDUMP_HEADER.pack(
            KDUMP, 6, self.utsname, 0, 0, 0, PAGE, sub_blocks, bitmap_blocks, end, len(self.pages), 0, 0, 0, 0
        )
        sub_header = KDUMP_SUB_HEADER.pack(0, dump_level, 0, 0, 0, 0, 0, notes_offset, len(note), 0, 0, 0, end, end)
        with path.open("wb") as file:
            file.write(header.ljust(PAGE, b"\0"))
            file.write((sub_header + note).ljust(sub_blocks * PAGE, b"\0"))
            file.write(memory_bitmap + file_bitmap)
            file.writelines(descriptors[page] for page in self.pages.values())
            file.writelines(data)


# The kdump-compressed ("diskdump") format, version 6, of 64-bit little-endian machines. It starts with blocks of a page
# each: the header; the sub header, followed by the notes; a bitmap of the pages of the machine; a bitmap of the pages
# in the file. Descriptors of the pages in the file and their data follow. Sources: makedumpfile's diskdump_mod.h and
# libkdumpfile's diskdump.c. Fields that are not read in a single, complete file are 0.
KDUMP = b"KDUMP   "
KDUMP_HEADER = struct.Struct("<8s i 390s 6x qq I iiI III II i")
"""signature, version, utsname, time (s, us), status, block and sub header and bitmap sizes, page counts, CPUs."""
KDUMP_SUB_HEADER = struct.Struct("<Q ii QQ QQ QQ QQ QQQ")
"""phys_base, dump level, split, first and end page, (offset, size) of vmcoreinfo, notes, eraseinfo, 64-bit pages."""
PAGE_DESCRIPTOR = struct.Struct("<QIIQ")
"""offset and size of the data, flags, page flags."""
ZLIB = 1
"""Descriptor flag: the data is compressed with zlib."""


def read_kdump(path: Path) -> SmallCore:
    """Read back what write_kdump() wrote."""
    data = path.read_bytes()
    header = KDUMP_HEADER.unpack_from(data)
    utsname, sub_blocks, bitmap_blocks = header[2], header[7], header[8]
    notes_offset, notes_size = KDUMP_SUB_HEADER.unpack_from(data, PAGE)[7:9]
    bitmaps = (1 + sub_blocks) * PAGE
    half = bitmap_blocks * PAGE // 2
    memory_frames, file_frames = (set_bits(data[start : start + half]) for start in (bitmaps, bitmaps + half))
    pages = {}
    for index, frame in enumerate(file_frames):
        descriptor = bitmaps + 2 * half + index * PAGE_DESCRIPTOR.size
        offset, size, flags, _ = PAGE_DESCRIPTOR.unpack_from(data, descriptor)
        page = data[offset : offset + size]
        pages[frame] = zlib.decompress(page) if flags & ZLIB else page
    vmcoreinfo = dict(notes(data[notes_offset : notes_offset + notes_size]))[b"VMCOREINFO"]
    memory = [(first, first + count) for first, count in neighbours(memory_frames)]
    machine = MACHINES[utsname[4 * 65 : 5 * 65].rstrip(b"\0")]
    return SmallCore(machine, vmcoreinfo, utsname, memory, pages)


def set_bits(bitmap: bytes) -> list[int]:
    """Numbers of the bits that are set."""
    return [8 * index + bit for index, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]


def neighbours(frames: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive page frames as (first, count), from ascending page frames."""
    for _, group in itertools.groupby(enumerate(frames), key=lambda pair: pair[1] - pair[0]):
        run = [frame for _, frame in group]
        yield run[0], len(run)


def notes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and description of each ELF note in `data`."""
    offset = 0
    while offset + NOTE_HEADER.size <= len(data):
        name_size, size, _ = NOTE_HEADER.unpack_from(data, offset)
        name = offset + NOTE_HEADER.size
        description = name + align(name_size, 4)
        yield data[name : name + name_size].rstrip(b"\0"), data[description : description + size]
        offset = description + align(size, 4)


def vmcoreinfo_note(vmcoreinfo: bytes) -> bytes:
    """VMCOREINFO as an ELF note."""
    name = b"VMCOREINFO\0"
    header = NOTE_HEADER.pack(len(name), len(vmcoreinfo), 0)
    return header + name.ljust(align(len(name), 4), b"\0") + vmcoreinfo.ljust(align(len(vmcoreinfo), 4), b"\0")


def align(size: int, alignment: int) -> int:
    """Round `size` up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
