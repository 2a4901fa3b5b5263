"""Cores as people keep them: the same rows as the plain dump, or words for what is wrong with the file."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.collector import formats, snapshot
from pipeline.collector.access import core_file, kernel
from pipeline.collector.status import CollectError
from tests import dumps
from tests.collector.conftest import CORES, Core
from tests.dumps import write
from tests.lab.reduce import PAGE, SmallCore, read_kdump

BY_NAME = {core.name: core for core in CORES}
SMALL = BY_NAME["deb510-n1"]
FORMS: dict[str, Callable[[Path, bytes], bytes]] = {
    "flattened": lambda _, dump: dumps.flatten(dump),
    "flattened, records reversed": lambda _, dump: dumps.flatten(dump, reverse=True, record_bytes=5000),
    "flattened by QEMU": lambda _, dump: dumps.flatten_like_qemu(dump),
    "flattened ELF": lambda core, _: dumps.flatten(elf(core)),
    "ELF": lambda core, _: elf(core),
}
COST_COLUMNS = {"reads", "read_bytes", "peak_rss_bytes", "core_id"}


def elf(core: Path) -> bytes:
    path = core.parent / "elf"
    read_kdump(SMALL.path).write_elf(path)
    return path.read_bytes()


def rows(path: Path) -> list[list[tuple[object, ...]]]:
    """The rows of all tables without what the audit cost, and core_id, which has the size of the file."""
    audited = snapshot.take(kernel.open_kernel(str(path)))
    return [
        [tuple(v for c, v in zip(table.columns, row, strict=True) if c not in COST_COLUMNS) for row in table.rows]
        for table in audited.tables
    ]


def outcome(path: Path) -> tuple[str, str]:
    """The status of a core, and its note or the error."""
    try:
        opened = kernel.open_kernel(str(path))
        with core_file.explained(opened.note):
            snapshot.take(opened)
    except CollectError as error:
        return error.status, str(error)
    return "ok", opened.note or ""


def refusal(path: Path) -> CollectError:
    with pytest.raises(CollectError) as error_info, core_file.explained(None):
        snapshot.take(kernel.open_kernel(str(path)))
    assert error_info.value.status == "bad_core"
    assert str(error_info.value).isprintable()
    return error_info.value


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_rows_of_the_plain_dump(form: str, tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(FORMS[form](core, SMALL.path.read_bytes()))
    assert rows(core) == rows(SMALL.path)


def test_every_kernel_is_read_from_its_flattened_dump(core: Core, tmp_path: Path) -> None:
    if core.name == "bytedance":
        pytest.skip("as deb510-n4, but larger")
    shutil.copytree(core.directory, tmp_path / "c", ignore=shutil.ignore_patterns("truth"))
    flat = write(tmp_path / "c" / "vmcore", dumps.flatten(core.path.read_bytes()))
    assert rows(flat) == rows(core.path)


def test_makedumpfile_rearranges_what_the_tests_flatten(tmp_path: Path) -> None:
    """The flattener of these tests writes the format: makedumpfile -R gives the dump back, byte by byte."""
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")
    dump = SMALL.path.read_bytes()
    with write(tmp_path / "flat", dumps.flatten(dump, reverse=True)).open("rb") as file:
        subprocess.run(["makedumpfile", "-R", tmp_path / "new"], stdin=file, check=True, capture_output=True)
    assert (tmp_path / "new").read_bytes() == dump


@pytest.mark.parametrize(
    "arguments", ["-c -d 0", "-l -d 0", "-d 0", "-E -d 31", "-c -d 0 -F", "-E -d 31 -F", "-F -l -d 31"]
)
def test_what_makedumpfile_writes_has_the_rows_of_the_plain_dump(arguments: str, tmp_path: Path) -> None:
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")
    read_kdump(SMALL.path).write_elf(tmp_path / "elf")
    command, new = ["makedumpfile", *arguments.split(), tmp_path / "elf"], tmp_path / "new"
    if "-F" in command:
        with new.open("wb") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, check=True)
    else:
        subprocess.run([*command, new], check=True, capture_output=True)
    assert rows(new) == rows(SMALL.path)


def test_a_flattened_dump_that_is_cut_off_names_its_end_record(tmp_path: Path) -> None:
    flat = dumps.flatten(SMALL.path.read_bytes())
    cuts = [4096, 4100, len(flat) // 2, len(flat) - 16, len(flat) - 9]
    for cut in cuts:
        error = refusal(write(tmp_path / "core", flat[:cut]))
        assert "its end record is missing; makedumpfile did not finish" in str(error), cut


@pytest.mark.parametrize("record_bytes", [5000, 1 << 20])
def test_the_header_of_a_flattened_dump_is_found_in_its_first_records(record_bytes: int) -> None:
    """A walk along all records of a large dump would take seconds; the rest of this one is missing."""
    flat = dumps.flatten(SMALL.path.read_bytes(), record_bytes=record_bytes)
    header = formats.kdump_header(formats.unflattened_start(io.BytesIO(flat[: 4096 + 2 * (16 + record_bytes)])))
    with SMALL.path.open("rb") as file:
        assert header == formats.kdump_header(file)


@pytest.mark.parametrize("words", ["drgn was built without libkdumpfile support", "file #0: Unknown file format"])
def test_a_drgn_that_cannot_read_flattened_dumps_keeps_the_remedy(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is drgn's sentence without libkdumpfile, the second stands for a libkdumpfile that is too old."""

    class Program:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def set_core_dump(self, _: str) -> None:
            raise ValueError(words)

    monkeypatch.setattr(kernel, "Program", Program)
    path = write(tmp_path / "core", dumps.flatten(SMALL.path.read_bytes()))
    message = str(refusal(path))
    assert f"makedumpfile -R NEW < {path}" in message
    assert words in message


# Parts of a dump


def test_a_part_of_a_split_dump_names_all_parts_beside_it_in_order(tmp_path: Path) -> None:
    dump = SMALL.path.read_bytes()
    first = write(tmp_path / "z", dumps.part(dump, 0, 1000))
    second = write(tmp_path / "a", dumps.part(dump, 1000, 9000))
    write(tmp_path / "other", dumps.part(BY_NAME["deb510-n2"].path.read_bytes(), 0, 1000))
    write(tmp_path / "whole", dump)
    for part in (first, second):
        error = refusal(part)
        assert f"makedumpfile --reassemble {first} {second} NEW" in str(error)


def test_the_named_command_joins_the_parts_of_makedumpfile(tmp_path: Path) -> None:
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")
    read_kdump(SMALL.path).write_elf(tmp_path / "elf")
    parts = [tmp_path / "p1", tmp_path / "p2"]
    subprocess.run(
        ["makedumpfile", "-c", "-d", "0", "--split", tmp_path / "elf", *parts], check=True, capture_output=True
    )
    _, _, command = str(refusal(parts[1])).rpartition(": ")
    program, option, *files, _ = command.split()
    assert (program, option, files) == ("makedumpfile", "--reassemble", [str(part) for part in parts])
    subprocess.run([program, option, *files, tmp_path / "new"], check=True, capture_output=True)
    assert rows(tmp_path / "new") == rows(SMALL.path)


# Incomplete dumps


def test_an_incomplete_dump_is_read_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "core", dumps.incomplete(SMALL.path.read_bytes()))
    opened = kernel.open_kernel(str(path))
    assert opened.note == "the dump is incomplete: its disk was full"
    assert rows(path)[1:] == rows(SMALL.path)[1:]


def without(core: SmallCore, address: int, directory: Path) -> bytes:
    """A kdump-compressed dump without the page at a physical address."""
    pages = {frame: page for frame, page in core.pages.items() if frame != address // PAGE}
    assert len(pages) == len(core.pages) - 1
    path = directory / "without"
    SmallCore(core.machine, core.vmcoreinfo, core.utsname, core.memory, pages).write_kdump(path)
    return path.read_bytes()


def physical(core: SmallCore, symbol: bytes) -> int:
    """Physical address of a symbol of x86_64's kernel image: Documentation/arch/x86/x86_64/mm.rst, phys_base."""
    fields = dict(line.split(b"=", 1) for line in core.vmcoreinfo.splitlines() if b"=" in line)
    virtual = int(fields[b"SYMBOL(%s)" % symbol], 16)
    return virtual - 0xFFFFFFFF80000000 + int(fields[b"NUMBER(phys_base)"])


@pytest.mark.parametrize(
    ("symbol", "part"), [(b"_stext", "the kernel's text is missing"), (b"init_top_pgt", "a page table of the kernel")]
)
@pytest.mark.parametrize("is_incomplete", [False, True])
def test_what_is_missing_is_named_and_so_is_the_reason(
    symbol: bytes, part: str, is_incomplete: bool, tmp_path: Path
) -> None:
    small = read_kdump(SMALL.path)
    dump = without(small, physical(small, symbol), tmp_path)
    message = str(refusal(write(tmp_path / "core", dumps.incomplete(dump) if is_incomplete else dump)))
    assert part in message
    assert ("its disk was full" in message) == is_incomplete
    assert (core_file.DAMAGED in message) != is_incomplete


def test_a_core_cut_anywhere_is_refused_or_warned_of(tmp_path: Path) -> None:
    """libkdumpfile reads zeros after the end of a file, or dies of SIGBUS; a child's death would end this test too."""
    read_kdump(SMALL.path).write_elf(tmp_path / "elf")
    path = tmp_path / "core"
    for whole in (SMALL.path.read_bytes(), (tmp_path / "elf").read_bytes()):
        start_of_data = 90_000
        cuts = [random.Random(n).randrange(1, len(whole)) for n in range(20)]
        cuts += [random.Random(n).randrange(1, start_of_data) for n in range(5)] + [len(whole) - 1]
        for cut in cuts:
            path.write_bytes(whole[:cut])
            status, note = outcome(path)
            assert status == "bad_core" or (status == "ok" and f"{cut} of {len(whole)} bytes" in note), cut


def test_a_core_whose_memory_ends_in_zeros_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    """makedumpfile and QEMU store a page of zeros once, before the others, so the last descriptors tell no end."""
    core = read_kdump(SMALL.path)
    first, last = min(core.pages) - 1, max(core.pages)
    zero_pages = dict.fromkeys(range(last + 1, last + 20_000), bytes(PAGE))
    padded = SmallCore(
        core.machine,
        core.vmcoreinfo,
        core.utsname,
        [(0, last + 20_000)],
        {first: bytes(PAGE), **core.pages, **zero_pages},
    )
    padded.write_kdump(tmp_path / "whole")
    assert core_file.read_header(str(tmp_path / "whole")).note is None
    whole = (tmp_path / "whole").read_bytes()
    for percent in (30, 50, 70, 90, 97, 99.9):
        path = write(tmp_path / "core", whole[: int(len(whole) * percent / 100)])
        assert "ends early" in str(refusal(path)), percent


def test_headers_that_lead_out_of_the_file_are_named(tmp_path: Path) -> None:
    kdump = bytearray(SMALL.path.read_bytes())
    struct.pack_into("<Q", kdump, dumps.BLOCK + 32, 1 << 47)  # kdump_sub_header.size_vmcoreinfo
    assert "ends early" in str(refusal(write(tmp_path / "kdump", bytes(kdump))))
    read_kdump(SMALL.path).write_elf(tmp_path / "elf")
    many_segments = [(40, "<Q", 1 << 63), (56, "<H", 0xFFFF)]  # e_shoff, and PN_XNUM in e_phnum
    far_segment = [(64 + 56 + 8, "<Q", (1 << 64) - 1)]  # p_offset of the first after the notes
    for fields in (many_segments, far_segment):
        elf_core = bytearray((tmp_path / "elf").read_bytes())
        for offset, code, value in fields:
            struct.pack_into(code, elf_core, offset, value)
        status, _ = outcome(write(tmp_path / "core", bytes(elf_core)))
        assert status in ("bad_core", "no_types"), fields


def test_a_flattened_dump_without_its_first_record_is_refused(tmp_path: Path) -> None:
    """drgn 0.3.0 ends in SIGSEGV."""
    header = dumps.flatten(b"")
    assert "the record with the dump's header is missing" in str(refusal(write(tmp_path / "core", header)))


def test_a_page_that_is_stored_as_it_is_is_never_read_as_zeros(tmp_path: Path) -> None:
    """A dump without compression whose last page is cut off: libkdumpfile alone would read zeros."""
    pages = {0: bytes(PAGE), 1: b"\xaa" * PAGE}
    core = read_kdump(SMALL.path)
    SmallCore(core.machine, core.vmcoreinfo, core.utsname, [(0, 8)], pages).write_kdump(tmp_path / "core")
    data = bytearray((tmp_path / "core").read_bytes())
    header = formats.kdump_header((tmp_path / "core").open("rb"))
    descriptor = header.bitmap_offset + header.bitmap_bytes + 24
    struct.pack_into("<QII", data, descriptor, len(data), PAGE, 0)
    write(tmp_path / "core", bytes(data) + b"\xaa" * (PAGE - 1))
    assert f"ends early, after {len(data) + PAGE - 1} bytes of at least {len(data) + PAGE}" in str(
        refusal(tmp_path / "core")
    )


def test_an_elf_core_with_too_many_segments_for_its_header_is_measured_too(tmp_path: Path) -> None:
    """e_phnum is then PN_XNUM, and their number is sh_info of the first section (elf(5))."""
    read_kdump(SMALL.path).write_elf(tmp_path / "elf")
    data = bytearray((tmp_path / "elf").read_bytes())
    (count,) = struct.unpack_from("<H", data, 56)
    struct.pack_into("<H", data, 56, 0xFFFF)
    section = struct.pack("<2I4Q2I2Q", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    struct.pack_into("<Q", data, 40, len(data))
    path = write(tmp_path / "core", bytes(data) + section)
    assert core_file.read_header(str(path)).note is None
    with path.open("r+b") as file:  # the section header stays readable, and the last segment reaches beyond it
        table = 64 + 56 * (count - 1)
        file.seek(table + 32)
        file.write(struct.pack("<Q", len(data)))
    assert "the core is truncated" in core_file.read_header(str(path)).note


# Paths that are not files


def test_an_empty_file_says_that_nothing_was_written(tmp_path: Path) -> None:
    assert "is empty: the dump was not written" in str(refusal(write(tmp_path / "vmcore", b"")))


def test_a_fifo_a_socket_and_a_directory_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # open(2) would wait for a writer
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket", "directory"):
            assert f"a {name}".lower() in str(refusal(tmp_path / name)).lower()
    assert "a character device" in str(refusal(Path("/dev/zero")))


@pytest.mark.parametrize(
    ("head", "command"),
    [
        (b"\x1f\x8b\x08", "gzip -dc"),
        (b"BZh9", "bzip2 -dc"),
        (b"\xfd7zXZ\0", "xz -dc"),
        (b"\x28\xb5\x2f\xfd", "zstd -dc"),
        (b"\x04\x22\x4d\x18", "lz4 -dc"),
        (b"vmcore".ljust(257, b"\0") + b"ustar\0", "tar -xf"),
    ],
)
def test_a_packed_core_names_the_command_that_unpacks_it(head: bytes, command: str, tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "core", head.ljust(1000, b"\0")))
    assert f"unpack it: {command} {tmp_path / 'core'}" in str(error)
    assert error.error_type == "Packed"
