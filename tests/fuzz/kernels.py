"""Parsers of a kernel's memory and of the files of its core: what a hostile kernel or core can put there."""

from __future__ import annotations

import contextlib
import io
import itertools
import lzma
import re
import socket
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import drgn

from pipeline.collector import formats
from pipeline.collector.access import (
    btf_files,
    build_check,
    core_file,
    kallsyms,
    physical,
    qmp,
    utsname,
    vmcoreinfo,
)
from pipeline.collector.access.symbol_names import SymbolNames
from pipeline.collector.status import CollectError
from tests import dumps
from tests.collector.access.test_symbol_names import compress, table
from tests.fuzz.target import Target, file_with

# What ends an audit with a status of its target: pipeline/collector/__main__.py.
ERRORS = (CollectError, LookupError, AttributeError, ValueError, RecursionError, drgn.FaultError)
PLATFORM = drgn.Platform(drgn.Architecture.X86_64)
BASE = 0xFFFFFFFF81000000
CORES = Path(__file__).parents[1] / "vmcores"
KDUMP = Path(__file__).parents[1] / "kdumps/deb510-kdump/vmcore.xz"


class Kernel:
    """A program of a kernel whose memory, physical and virtual, is a few bytes, and whose VMCOREINFO is any text."""

    flags = drgn.ProgramFlags(0)
    platform = PLATFORM

    def __init__(self, memory: bytes, text: bytes = b"", base: int = BASE) -> None:
        self._program = drgn.Program(PLATFORM)
        self._text = text
        pages = memory + bytes(-len(memory) % 4096 or 4096)
        for is_physical, start in ((False, base), (True, 0)):
            self._program.add_memory_segment(
                start, len(pages), lambda _, count, offset, __: pages[offset : offset + count], is_physical
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def __getitem__(self, name: str) -> drgn.Object:
        release = re.search(rb"OSRELEASE=(.*)", self._text)
        text = {"VMCOREINFO": self._text, "UTS_RELEASE": release[1] if release else b""}[name]
        array_type = self._program.array_type(self._program.int_type("char", 1, True), len(text) + 1)
        return drgn.Object(self._program, array_type, text + b"\0")


def parse_btf(data: bytes) -> None:
    """Look up all words of a BTF as types and enumerators, with their members."""
    types = btf_files._types_only(PLATFORM, data)
    for name in [word.decode() for word in re.findall(rb"[A-Za-z_]\w*", data)[:20]]:
        for find in (types.type, types.constant):
            for text in (name, f"struct {name}", f"union {name}", f"enum {name}"):
                try:
                    found = find(text)
                except (LookupError, SyntaxError):
                    continue
                _look_into(found if isinstance(found, drgn.Type) else found.type_, 4)
    build_check.type_differences(Kernel(b"", VMCOREINFO), types)


def _look_into(type_: drgn.Type, depth: int) -> None:
    str(type_)
    try:
        drgn.sizeof(type_)
    except TypeError:  # an incomplete type
        return
    if not depth:
        return
    if type_.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        type_.has_member("next")
        for member in itertools.islice(type_.members or (), 8):
            _look_into(member.type, depth - 1)
    elif type_.kind in (drgn.TypeKind.POINTER, drgn.TypeKind.ARRAY, drgn.TypeKind.TYPEDEF):
        _look_into(type_.type, depth - 1)


def btf_seeds() -> Iterator[bytes]:
    """A BTF with each kind of type, in both byte orders (Documentation/bpf/btf.rst)."""
    strings = b"\0int\0list_head\0next\0prev\0flags\0PG_slab\0PG_max\0u64\0callback\0lists\0long\0bool\0"

    def name(text: bytes) -> int:
        return strings.index(b"\0" + text + b"\0") + 1

    def kind(number: int, vlen: int = 0, flag: int = 0) -> int:
        return flag << 31 | number << 24 | vlen

    words = [
        *(name(b"int"), kind(1), 4, 1 << 24 | 32),  # 1
        *(0, kind(2), 3),  # 2: pointer to 3
        *(name(b"list_head"), kind(4, 2), 16, name(b"next"), 2, 0, name(b"prev"), 2, 64),  # 3
        *(name(b"flags"), kind(6, 2), 4, name(b"PG_slab"), 7, name(b"PG_max"), 9),  # 4
        *(0, kind(3), 0, 3, 1, 4),  # 5: array of 4
        *(name(b"u64"), kind(8), 1),  # 6
        *(0, kind(13, 2), 1, 0, 6, 0, 0),  # 7: function type
        *(name(b"callback"), kind(8), 7),  # 8
        *(name(b"lists"), kind(5, 3), 64, name(b"lists"), 5, 0, 0, 3, 0, name(b"flags"), 4, 0),  # 9
        *(name(b"list_head"), kind(4, 1, 1), 8, name(b"flags"), 1, 3 << 24 | 5),  # 10: bit field
        *(name(b"flags"), kind(7), 0),  # 11: forward
        *(0, kind(9), 1, 0, kind(10), 12, 0, kind(11), 13, name(b"long"), kind(16), 8),  # 12 to 15
        *(name(b"PG_max"), kind(19, 1, 1), 8, name(b"PG_max"), 1, 1),  # 16
        *(name(b"bool"), kind(1), 1, 4 << 24 | 8),  # 17
        *(name(b"int"), kind(14), 1, 0, name(b"lists"), kind(15, 1), 4, 18, 0, 4, name(b"int"), kind(17), 3, 0),
    ]
    cycle = [name(b"u64"), kind(8), 2, 0, kind(10), 1]
    for order, content in (("<", words), (">", words), ("<", cycle)):
        types = struct.pack(f"{order}{len(content)}I", *content)
        header = struct.pack(f"{order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
        yield header + types + strings


def parse_btf_file(data: bytes) -> None:
    """Read an archive of a BTF as it is in --btf-dir."""
    btf_files._read_file(file_with(data, "5.10.0.btf.tar.xz"), "5.10.0")


def btf_file_seeds() -> Iterator[bytes]:
    for file_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        for mode in ("w", "w:xz", "w:gz"):
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode=mode, format=file_format) as tar:  # type: ignore[call-overload]
                member = tarfile.TarInfo("5.10.0.btf")
                member.size = 64
                tar.addfile(member, io.BytesIO(bytes(64)))
            yield archive.getvalue()


VMCOREINFO = b"""OSRELEASE=5.10.0
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff81000008
SYMBOL(_stext)=ffffffff81000000
SYMBOL(kallsyms_names)=ffffffff81000010
SYMBOL(kallsyms_num_syms)=ffffffff81000008
SYMBOL(kallsyms_token_table)=ffffffff81000100
SYMBOL(kallsyms_token_index)=ffffffff81000200
SYMBOL(kallsyms_offsets)=ffffffff81000400
SYMBOL(kallsyms_relative_base)=ffffffff81000440
OFFSET(list_head.next)=0
SIZE(list_head)=16
NUMBER(PG_slab)=7
LENGTH(mem_section)=2048
NUMBER(phys_base)=0
NUMBER(kimage_voffset)=0xffffffff80000000
KERNELOFFSET=0
"""


def parse_kernel(data: bytes) -> None:
    """Take the first part of the bytes for VMCOREINFO, and the rest for memory: utsname and the symbol table."""
    text, _, memory = data.partition(b"\0")
    prog = Kernel(memory, text)
    utsname.read(prog)
    build_check.type_differences(prog, drgn.Program(PLATFORM))
    with mock.patch.object(kallsyms, "_MAX_IMAGE_BYTES", kallsyms._CHUNK_BYTES):
        find = kallsyms._load_own_symbols(prog)
    for name in (None, "_stext", "init_uts_ns", "list_lrus"):
        find(prog, name, None, name is not None)
    find(prog, None, BASE, False)


def kernel_seeds() -> Iterator[bytes]:
    """The tables of scripts/kallsyms.c in the order of v6.4, at the addresses in VMCOREINFO."""
    names = [b"T_stext", b"tlist_lru_add", b"Dinit_uts_ns", b"dlist_lrus"]
    entries, tokens = compress(names)
    data = table(entries)
    offsets = [sum(len(text) + 1 for text in tokens[:value]) for value in range(256)]
    memory = bytearray(0x480)
    token_table = b"".join(text + b"\0" for text in tokens)
    addresses = {b"token_table": 0x600, b"token_index": 0x600 + len(token_table)}
    memory += bytes(0x600 - len(memory)) + token_table + struct.pack("<256H", *offsets)
    struct.pack_into("<I", memory, 8, len(names))
    memory[0x10 : 0x10 + len(data)] = data
    struct.pack_into("<4i", memory, 0x400, 0, 16, 32, 48)
    struct.pack_into("<Q", memory, 0x440, BASE)
    memory[0x80 : 0x80 + 6] = b"Linux\0"
    text = VMCOREINFO
    for name, offset in addresses.items():
        text = re.sub(rb"(kallsyms_%s\)=)\w+" % name, rb"\g<1>%x" % (BASE + offset), text)
    yield text + b"\0" + memory
    yield re.sub(rb"(?m)^SYMBOL\(kallsyms.*\n", b"", text) + b"\0" + memory


def parse_old_tables(data: bytes) -> None:
    """Search an image of a kernel for the tables around the digits, as for kernels before v6.0."""
    for order in "<>":
        for digits in kallsyms._DIGITS.finditer(data):
            with contextlib.suppress(IndexError, ValueError, struct.error):  # as _find_tables()
                kallsyms._tables_around(bytearray(data), digits.start(), order, BASE)


def old_table_seeds() -> Iterator[bytes]:
    """The tables of scripts/kallsyms.c in the order before v6.4."""
    names = [b"T%c%d" % (ord("a") + n % 26, n) for n in range(520)]
    tokens = [bytes([value]) for value in range(256)]
    tokens[0] = b" "
    entries = [bytes(name) for name in names]
    starts = [sum(len(entry) + 1 for entry in entries[:n]) for n in range(0, len(entries), 256)]
    offsets = [sum(len(text) + 1 for text in tokens[:value]) for value in range(256)]
    for order, marker in itertools.product("<>", "IQ"):
        parts = [
            bytes(96),
            struct.pack(f"{order}{len(names)}i", *range(-1, -1 - len(names), -1)),
            struct.pack(f"{order}Q", BASE),
            struct.pack(order + marker, len(names)),
            table(entries),
            struct.pack(f"{order}{len(starts)}{marker}", *starts),
            b"".join(text + b"\0" for text in tokens),
            struct.pack(f"{order}256H", *offsets),
        ]
        yield b"".join(part + bytes(-len(part) % 8) for part in parts)


def parse_symbol_names(data: bytes) -> None:
    """Take the first byte for the number of names, and the next two parts for the tokens and the names."""
    count, (tokens, _, names) = len(data) and data[0], data[1:].partition(b"\xff\xff")
    texts = (tokens.split(b"\0") + [b""] * 256)[:256]
    symbol_names = SymbolNames(names, count, texts)
    for name in symbol_names:
        symbol_names.find(name)


def symbol_name_seeds() -> Iterator[bytes]:
    for names in ([b"T_stext", b"dlist_lrus", b"Tlist_lru_add"], [b"taaa", b"tabab", b"Tb" * 70]):
        entries, tokens = compress(names)
        yield bytes([len(names)]) + b"\0".join(tokens) + b"\xff\xff" + table(entries)


def parse_vmcoreinfo(data: bytes) -> None:
    """Search memory for VMCOREINFO, and read a file of it."""
    texts: list[bytes] = []

    def open_core(text: bytes) -> Kernel:
        texts.append(text)
        return Kernel(data, text, BASE)

    vmcoreinfo.read_file(file_with(data))
    try:
        assert vmcoreinfo.find(Kernel(data), "core", [(0, len(data))], open_core) in texts
    finally:
        assert all(text.startswith(b"OSRELEASE=") and text in data for text in texts)


def vmcoreinfo_seeds() -> Iterator[bytes]:
    yield b"\x09\0\0\0" + VMCOREINFO + bytes(64)
    yield (
        bytes(16) + b"Linux\0" + bytes(400) + b"\0" + VMCOREINFO + b"\0" + VMCOREINFO.replace(b"5.10", b"5.11") + b"\0"
    )


def parse_core(data: bytes) -> None:
    """Decide as the collector does before drgn opens a core, and find its ranges of physical memory.

    An incomplete kdump-compressed core is never left for libkdumpfile, which would die of SIGBUS or read zeros.
    """
    path = file_with(data)
    ranges = physical.ranges(path)
    assert all(start < end for start, end in ranges) or not formats.is_kdump(data)
    core = core_file.read_header(path)
    assert core.size_bytes == len(data)
    if formats.is_kdump(data):
        header = formats.kdump_header(io.BytesIO(data))
        if header is not None:
            assert header.notes_end <= len(data)
            assert header.bitmap_offset + header.bitmap_bytes <= len(data)


def core_seeds() -> Iterator[bytes]:
    """Heads of a real core in each form; a kdump-compressed one of few pages is complete."""
    kdump = lzma.decompress(KDUMP.read_bytes())
    for dump in (kdump[:16384], (CORES / "deb61-n2/vmcore").read_bytes()[:16384]):
        yield dump
        yield dumps.flatten(dump, record_bytes=4096)
        yield dumps.flatten_like_makedumpfile(dump[:12288]) if dump.startswith(b"KDUMP") else dumps.flatten(dump)
    yield small_kdump()
    for magic, _ in core_file.foreign._MAGICS:
        yield magic + bytes(64)
    for magic, _ in formats._PROGRAMS:
        yield magic + bytes(64)


def small_kdump() -> bytes:
    """A complete kdump-compressed dump of one page, as makedumpfile's diskdump_mod.h declares it."""
    head = bytearray(4096)
    head[:8] = b"KDUMP   "
    struct.pack_into("<i", head, 8, 6)
    head[12:18], head[12 + 4 * 65 : 12 + 4 * 65 + 6] = b"Linux\0", b"x86_64"
    struct.pack_into("<IiiII", head, 424, 1, 4096, 1, 2, 64)
    sub_header = struct.pack("<Q2i8Q3Q", 0, 0, 0, *[0] * 8, 0, 0, 64).ljust(4096, b"\0")
    bitmap = bytes([1]).ljust(4096, b"\0")
    offset = 4 * 4096 + 24
    return bytes(head) + sub_header + bitmap * 2 + struct.pack("<QIIQ", offset, 64, 1, 0) + bytes(64)


def parse_greeting(data: bytes) -> None:
    """Read what a monitor says first."""
    ours, theirs = socket.socketpair()
    with ours, theirs, mock.patch.multiple(qmp, _GREETING_TIMEOUT_S=0, _POLL_S=0):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        qmp._await_greeting(ours, "qmp:/run/monitor")
        assert re.match(rb'\s*\{\s*"QMP"', data)


TARGETS = {
    "btf": Target(parse_btf, ERRORS, btf_seeds, [b"\x9f\xeb", b"\xeb\x9f"], 1024, weight=2),
    "btf-files": Target(
        parse_btf_file, btf_files._FILE_ERRORS, btf_file_seeds, [b"ustar", b"5.10.0.btf", b"path="], 16384, weight=3
    ),
    "kernel": Target(
        parse_kernel,
        ERRORS,
        kernel_seeds,
        [*VMCOREINFO.splitlines(), b"kallsyms_addresses", b"ffffffff"],
        8192,
        weight=0.3,
    ),
    "old-kallsyms": Target(parse_old_tables, (), old_table_seeds, [], 16384, weight=0.5),
    "symbol-names": Target(parse_symbol_names, (IndexError,), symbol_name_seeds, [b"\xff\xff"], weight=1),
    "vmcoreinfo": Target(parse_vmcoreinfo, ERRORS, vmcoreinfo_seeds, VMCOREINFO.splitlines(), weight=4),
    "core-file": Target(
        parse_core,
        (*ERRORS, OSError),
        core_seeds,
        [b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0", b"\x7fELF\x02"],
        24576,
        weight=0.5,
    ),
    "greeting": Target(
        parse_greeting, (CollectError, OSError), lambda: [b'{"QMP": {"version": {}}}'], [b'{"QMP"'], weight=2
    ),
}
