"""Dumps without a VMCOREINFO note, as hypervisors write them, have the rows of the core with the note, or a remedy.

tests/lab/test_hypervisor.py audits real ones.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel, physical, vmcoreinfo
from pipeline.collector.status import CollectError
from tests.collector.conftest import CORES
from tests.lab import reduce

CORE = next(core for core in CORES if core.name == "deb510-n1")
ARM_CORE = next(core for core in CORES if core.name == "deb510-arm64")
PAGE = 4096
# ELF headers: e_ident, type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, ...
ELF = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
"""type, flags, offset, virtual and physical address, size in the file and in memory, alignment."""


def write_without_note(small_core: reduce.SmallCore, path: Path, form: str) -> str:
    """Write a core whose note is not VMCOREINFO's."""
    write = small_core.write_elf if form == "elf" else small_core.write_kdump
    write(path)
    note = reduce.vmcoreinfo_note(small_core.vmcoreinfo)
    before, after = path.read_bytes().split(note, 1)
    data = before + note.replace(b"VMCOREINFO", b"ANOTHERONE")[:24].ljust(len(note), b"\0") + after
    path.write_bytes(flatten(data) if form == "flattened" else data)
    return str(path)


def flatten(data: bytes) -> bytes:
    """A core as QEMU flattens it: the header, the blocks up to the end of the bitmaps in any order, and the rest."""
    sub_header_blocks, bitmap_blocks = struct.unpack_from("<2I", data, 432)
    end = PAGE * (1 + sub_header_blocks + bitmap_blocks)
    starts = [0, *reversed(range(PAGE, end, PAGE)), end]
    ends = [start + PAGE for start in starts[:-1]] + [len(data)]
    file = struct.pack(">16s2q", b"makedumpfile", 1, 1).ljust(PAGE, b"\0")
    for start, end in zip(starts, ends, strict=True):
        file += struct.pack(">2q", start, end - start) + data[start:end]
    return file + struct.pack(">2q", -1, 0)


def with_pages(core: Any, *pages: bytes) -> reduce.SmallCore:
    """The pages of a bundled core and further ones, at frames of its memory that it does not have."""
    small_core = reduce.read_kdump(core.path)
    free_frames = (frame for run in small_core.memory for frame in range(*run) if frame not in small_core.pages)
    for page in pages:
        for start in range(0, len(page), PAGE):
            small_core.pages[next(free_frames)] = page[start : start + PAGE].ljust(PAGE, b"\0")
    ordered_pages = dict(sorted(small_core.pages.items()))
    small_core.pages.clear()
    small_core.pages.update(ordered_pages)
    return small_core


def of_another_boot(text: bytes) -> bytes:
    """VMCOREINFO of a boot in which KASLR put the kernel at an address 16 MB higher."""

    def move(match: re.Match[bytes]) -> bytes:
        return b"%b=%x" % (match[1], int(match[2], 16) + (16 << 20))

    return re.sub(rb"^(SYMBOL\(\w+\))=([0-9a-f]+)$", move, text, flags=re.MULTILINE)


def tables(path: str, **options: str) -> list[tuple[Any, Any]]:
    """The tables of an audit, without that of targets, which has times and the size of the file."""
    tables = snapshot.take(kernel.open_kernel(path, **options)).tables
    return [(table.columns, table.rows) for table in tables if table.name != "targets"]


def failure(path: str, **options: str) -> CollectError:
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(path, **options)
    assert str(error_info.value).startswith(f"{path}: ")
    return error_info.value


TEXT = reduce.read_kdump(CORE.path).vmcoreinfo
ARM_TEXT = reduce.read_kdump(ARM_CORE.path).vmcoreinfo


@pytest.mark.parametrize("form", ["elf", "kdump", "flattened"])
@pytest.mark.parametrize(("core", "text"), [(CORE, TEXT), (ARM_CORE, ARM_TEXT)], ids=["amd64", "arm64"])
def test_it_is_found_in_the_memory(tmp_path: Path, core: Any, text: bytes, form: str) -> None:
    for system_map in core.directory.glob("System.map-*"):
        (tmp_path / system_map.name).symlink_to(system_map)
    path = write_without_note(with_pages(core, text), tmp_path / "core", form)
    assert tables(path) == tables(str(core.path))


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_a_file_serves_in_its_place(tmp_path: Path, form: str) -> None:
    """The file is as pmemsave writes it: the note's header, the text, and zeros to the end of the page."""
    path = write_without_note(with_pages(CORE), tmp_path / "core", form)
    note = tmp_path / "note"
    note.write_bytes(reduce.vmcoreinfo_note(TEXT).ljust(PAGE, b"\0"))
    assert tables(path, vmcoreinfo_path=str(note)) == tables(str(CORE.path))


def test_all_forms_without_it_name_the_same_remedies(tmp_path: Path) -> None:
    messages = set()
    for form in ("elf", "kdump", "flattened"):
        path = write_without_note(with_pages(CORE), tmp_path / form, form)
        error = failure(path)
        assert error.status == "no_types"
        messages.add(str(error).replace(path, "PATH"))
    (message,) = messages
    for remedy in ("--vmcoreinfo FILE", "-device vmcoreinfo", "<vmcoreinfo state='on'/>", "qemu_fw_cfg", "4.17"):
        assert remedy in message


def test_a_fifo_in_its_place_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    file = tmp_path / "note"
    os.mkfifo(file)
    with pytest.raises(CollectError, match=f"^{file}: not a regular file$") as error_info:
        kernel.open_kernel(str(CORE.path), vmcoreinfo_path=str(file))
    assert error_info.value.status == "no_types"


def test_a_text_that_drgn_refuses_is_blamed_on_its_file(tmp_path: Path) -> None:
    file = tmp_path / "note"
    file.write_bytes(b"OSRELEASE=5.10.0\nPAGESIZE=x\n")
    with pytest.raises(CollectError, match=f"^{file}: not the VMCOREINFO of a kernel: ") as error_info:
        kernel.open_kernel(str(CORE.path), vmcoreinfo_path=str(file))
    assert error_info.value.status == "no_types"


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_a_file_of_another_boot_is_a_mismatch(tmp_path: Path, form: str) -> None:
    """Also where the core has its own: drgn would take the file's."""
    path, own_path = tmp_path / "core", tmp_path / "own"
    write_without_note(with_pages(CORE), path, form)
    with_pages(CORE).write_elf(own_path)
    (tmp_path / "note").write_bytes(of_another_boot(TEXT))
    for core in (path, own_path):
        error = failure(str(core), vmcoreinfo_path=str(tmp_path / "note"))
        assert (error.status, str(error)) == ("mismatch", f"{core}: {tmp_path}/note is not of this boot")


@pytest.mark.parametrize(("data", "reason"), [(None, "No such file"), (b"hello", "no VMCOREINFO")])
def test_a_file_that_is_no_vmcoreinfo_is_named(tmp_path: Path, data: bytes | None, reason: str) -> None:
    file = tmp_path / "note"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(CollectError, match=f"^{file}: {reason}") as error_info:
        kernel.open_kernel(str(CORE.path), vmcoreinfo_path=str(file))
    assert error_info.value.status == "no_types"


MISLEADING_PAGES = {
    "the format string of a kernel": b"OSRELEASE=%s\n\0GNU\0BUILD-ID=%s\n\0PAGESIZE=%ld\n\0init_uts_ns\0",
    "an earlier boot, by kexec": of_another_boot(TEXT),
    "another kernel, in a page of a file": b"log " + TEXT.replace(b"OSRELEASE=5.10", b"OSRELEASE=4.19"),
    "another architecture": ARM_TEXT,
    "the start of a text": TEXT[:200],
    "an address that is no number": re.sub(rb"(?<=init_uts_ns\)=)\w+", b"here", TEXT),
    "a text without page tables": re.sub(rb"SYMBOL\(swapper_pg_dir\)=\w+\n", b"", TEXT),
}


@pytest.mark.parametrize("page", MISLEADING_PAGES.values(), ids=MISLEADING_PAGES)
def test_only_the_text_that_fits_is_believed(tmp_path: Path, page: bytes) -> None:
    expected = tables(str(CORE.path))
    for pages in ((page, TEXT), (TEXT, page)):
        path = write_without_note(with_pages(CORE, *pages), tmp_path / "core", "elf")
        assert tables(path) == expected
    path = write_without_note(with_pages(CORE, page), tmp_path / "core", "elf")
    assert failure(path).status == "no_types"


def test_copies_of_it_are_one(tmp_path: Path) -> None:
    """The kernel has the text twice, once as a note, and a third copy for the capture kernel; a crash adds its time."""
    note, crash = reduce.vmcoreinfo_note(TEXT), TEXT + b"CRASHTIME=1700000000\n"
    path = write_without_note(with_pages(CORE, note, TEXT, crash), tmp_path / "core", "elf")
    assert tables(path) == tables(str(CORE.path))
    assert b"CRASHTIME" in kernel.open_kernel(path).prog["VMCOREINFO"].string_()


def test_two_kernels_that_fit_are_not_chosen_from(tmp_path: Path) -> None:
    other = re.sub(rb"(?<=KERNELOFFSET=)\w+", b"0", TEXT)
    assert other != TEXT
    path = write_without_note(with_pages(CORE, TEXT, other), tmp_path / "core", "elf")
    error = failure(path)
    assert error.status == "no_types"
    assert "VMCOREINFO of 2 kernels" in str(error)
    assert "--vmcoreinfo FILE" in str(error)
    (tmp_path / "note").write_bytes(TEXT)
    assert tables(path, vmcoreinfo_path=str(tmp_path / "note")) == tables(str(CORE.path))


@pytest.mark.parametrize(
    ("bound", "value", "reason"),
    [("_SEARCH_S", -1, "more than -1 s to search"), ("_MAX_BOOTS", 0, "more than 0 kernels")],
)
def test_the_search_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, reason: str
) -> None:
    monkeypatch.setattr(vmcoreinfo, bound, value)
    error = failure(write_without_note(with_pages(CORE, TEXT), tmp_path / "core", "elf"))
    assert error.status == "no_types"
    assert reason in str(error)
    assert "--vmcoreinfo FILE" in str(error)


def elf(path: Path, *segments: tuple[int, int, int]) -> str:
    """Write an ELF core with segments of (virtual address, physical address, size) that have no content."""
    end, count, section_header = ELF.size + SEGMENT.size * len(segments), len(segments), b""
    if count >= 0xFFFF:  # the number is in sh_info of the first section header
        section_header, count = struct.pack("<44xI16x", count), 0xFFFF
    sections = (end, 64, 1) if section_header else (0, 0, 0)
    header = ELF.pack(
        b"\x7fELF\x02\x01\x01",
        4,
        62,
        1,
        0,
        ELF.size * bool(segments),
        sections[0],
        0,
        ELF.size,
        SEGMENT.size,
        count,
        *sections[1:],
        0,
    )
    table = b"".join(SEGMENT.pack(1, 0, end, *segment, segment[2], 0) for segment in segments)
    path.write_bytes((header + table + section_header).ljust(PAGE, b"\0"))
    return str(path)


@pytest.mark.parametrize(
    "segments", [((0x400000, 0, PAGE), (0x7FFF0000, 0, PAGE)), ()], ids=["process", "xl dump-core"]
)
def test_a_core_without_physical_memory_is_a_bad_core(
    tmp_path: Path, segments: tuple[tuple[int, int, int], ...]
) -> None:
    error = failure(elf(tmp_path / "core", *segments))
    assert error.status == "bad_core"
    assert "no physical memory" in str(error)


def test_ranges_of_an_elf_core_are_merged_in_ascending_order(tmp_path: Path) -> None:
    """As in QEMU's dump with paging: a page has a segment for each address at which it is mapped."""
    segments = ((0x9000, 0x5000, 0x2000), (0x1000, 0x1000, 0x1000), (0xF000, 0x2000, 0x1000), (0x2000, 0x6000, 0x800))
    assert physical.ranges(elf(tmp_path / "core", *segments)) == [(0x1000, 0x3000), (0x5000, 0x7000)]


def test_ranges_of_an_elf_core_with_more_segments_than_its_header_can_count(tmp_path: Path) -> None:
    path = elf(tmp_path / "core", *((0, 2 * PAGE * n, PAGE) for n in range(70_000)))
    ranges = physical.ranges(path)
    assert len(ranges) == 70_000
    assert ranges[-1] == (2 * PAGE * 69_999, 2 * PAGE * 69_999 + PAGE)


@pytest.mark.parametrize("form", [bytes, flatten], ids=["plain", "flattened"])
def test_ranges_of_a_kdump_have_all_of_its_pages(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    frames = sorted(reduce.read_kdump(CORE.path).pages)
    path = tmp_path / "core"
    path.write_bytes(form(CORE.path.read_bytes()))
    byte_frames = sorted({frame // 8 for frame in frames})  # a byte of the bitmap is of 8 frames
    expected = [(first * 8 * PAGE, (first + count) * 8 * PAGE) for first, count in reduce.neighbours(byte_frames)]
    assert physical.ranges(str(path)) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"KDUMP   ",
        b"makedumpfile\0",
        b"\x7fELF\x02\x01",
        b"KDUMP   " + b"\xff" * PAGE,
        b"\x7fELF\x02\x01" + b"\xff" * 90,
    ],
)
def test_a_broken_header_has_no_ranges(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "core"
    path.write_bytes(data)
    assert physical.ranges(str(path)) == []
