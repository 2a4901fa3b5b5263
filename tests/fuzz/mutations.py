"""Mutations of what an audit reads: the fields of a core's structs, and its pages.

A good audit is recorded first. Each of its reads belongs to a place: a member of a struct that the collector decodes,
or else the line that reads and the offset of the word in what it reads. A cell is a place and a kind of mutation; the
campaign takes the cells of all members and lines in turn, each with a random one of the addresses that were read there.
"""

from __future__ import annotations

import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from types import FrameType
from typing import NamedTuple

from drgn import FaultError, Program

from pipeline.collector.access import memory

PAGE_BYTES = 4096
MAX_ADDRESSES = 2000
"""Addresses kept of one place, the first and then random ones."""
MAX_OBJECT_BYTES = 4096
"""Larger objects, such as pointer arrays, are one place as a whole: their words are all alike."""

_ALL = (1 << 64) - 1
_USER_POINTER = 0x7F12_3456_7890
_POISONS = (0xDEAD_0000_0000_0100, 0x6B6B_6B6B_6B6B_6B6B, 0x5A5A_5A5A_5A5A_5A5A, 0xCCCC_CCCC_CCCC_CCCC)


class Field(NamedTuple):
    address: int
    size: int


class Mutation(NamedTuple):
    """Replacements of memory by address; None for memory that is missing."""

    place: str
    kind: str
    parts: tuple[tuple[int, int, bytes | None], ...]

    def apply(self, prog: Program) -> None:
        for address, size, data in self.parts:
            prog.add_memory_segment(address, size, _reader(data))

    def __str__(self) -> str:
        parts = (
            f"{size} bytes at {address:#x}" + (f" = {data.hex()}" if data is not None and size <= 8 else "")
            for address, size, data in self.parts
        )
        return f"{self.place}: {self.kind} ({', '.join(parts)})"


def _reader(data: bytes | None) -> Callable[[int, int, int, bool], bytes]:
    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        if data is None:
            raise FaultError("a page that the mutation dropped", address)
        return data[offset : offset + count]

    return read


class Recording:
    """The fields and pages that an audit of a program reads.

    :param prog: the program whose reads are recorded; its memory is that of `source` from now on.
    :param source: a second program of the same core.
    """

    def __init__(self, prog: Program, source: Program, rng: random.Random) -> None:
        self.source = source
        self.fields: dict[str, list[Field]] = {}
        self.pages: set[int] = set()
        self._seen: dict[str, int] = {}
        self._rng = rng
        prog.add_memory_segment(0, _ALL, self._read)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        data = self.source.read(address, count, physical)
        if not physical:
            self.pages.update(range(address // PAGE_BYTES, (address + count - 1) // PAGE_BYTES + 1))
            for place, field in _fields(sys._getframe(1), address, count):
                self._add(place, field)
        return data

    def _add(self, place: str, field: Field) -> None:
        fields = self.fields.setdefault(place, [])
        seen = self._seen[place] = self._seen.get(place, 0) + 1
        if len(fields) < MAX_ADDRESSES:
            fields.append(field)
        elif (index := self._rng.randrange(seen)) < MAX_ADDRESSES:
            fields[index] = field

    def cells(self, rng: random.Random) -> list[tuple[str, str]]:
        """Every place with every kind of mutation, in an order in which members and lines take turns."""
        groups: dict[str, list[tuple[str, str]]] = {A_PAGE: [(A_PAGE, kind) for kind in PAGE_KINDS] * 4}
        for place in sorted(self.fields):
            groups.setdefault(place.partition("+")[0], []).extend((place, kind) for kind in FIELD_KINDS)
        for cells in groups.values():
            rng.shuffle(cells)
        return [cell for turn in zip_longest(*groups.values()) for cell in turn if cell]

    def mutation(self, place: str, kind: str, rng: random.Random) -> Mutation:
        if place == A_PAGE:
            return Mutation(place, kind, self._page_parts(kind, rng))
        fields = self.fields[place]
        index = rng.randrange(len(fields))
        field = fields[index]
        values = Values(self.source, fields, index, rng)
        data = (FIELD_KINDS[kind](values) & _ALL).to_bytes(8, "little")[: field.size].ljust(field.size, b"\xff")
        return Mutation(place, kind, ((field.address, field.size, data),))

    def _page_parts(self, kind: str, rng: random.Random) -> tuple[tuple[int, int, bytes | None], ...]:
        page, other = (number * PAGE_BYTES for number in rng.sample(sorted(self.pages), 2))
        contents = {
            "zero": [(page, bytes(PAGE_BYTES))],
            "drop": [(page, None)],
            "swap": [(page, self._page(other)), (other, self._page(page))],
            "repeat": [(page, self._page(other))],
        }
        return tuple((address, PAGE_BYTES, data) for address, data in contents[kind])

    def _page(self, address: int) -> bytes:
        try:
            return self.source.read(address, PAGE_BYTES)
        except FaultError:
            return bytes(PAGE_BYTES)


class Values:
    """What the mutations of a field start from."""

    def __init__(self, source: Program, fields: list[Field], index: int, rng: random.Random) -> None:
        self.source = source
        self.fields = fields
        self.index = index
        self.rng = rng
        self.field = fields[index]
        self.bits = 8 * min(self.field.size, 8)

    def value(self, field: Field | None = None) -> int:
        address, size = field or self.field
        return int.from_bytes(self.source.read(address, min(size, 8)), "little")

    def neighbour(self) -> int:
        """The value of the same field of the next struct, or of the next word."""
        if len(self.fields) > 1:
            return self.value(self.fields[(self.index + 1) % len(self.fields)])
        try:
            return self.value(Field(self.field.address + self.field.size, self.field.size))
        except FaultError:
            return ~self.value()


# What a field becomes.
FIELD_KINDS: dict[str, Callable[[Values], int]] = {
    "zero": lambda v: 0,
    "ones": lambda v: -1,
    "one bit": lambda v: v.value() ^ 1 << v.rng.randrange(v.bits),
    "neighbour": Values.neighbour,
    "own address": lambda v: v.field.address,
    "cycle": lambda v: v.value(v.fields[0]) if v.index else v.value(v.fields[-1]),
    "other struct": lambda v: v.rng.choice(v.fields).address,
    "huge": lambda v: (1 << v.bits - 1) - 1 - v.rng.randrange(2),
    "many": lambda v: max(v.value(), 1) << v.rng.randrange(1, 24),
    "negative": lambda v: -v.rng.choice((2, 5, 1 << v.bits - 1)),
    "poison": lambda v: v.rng.choice(_POISONS),
    "unaligned": lambda v: v.value() + v.rng.randrange(1, 8),
    "off by one": lambda v: v.value() + v.rng.choice((1, -1)),
    "user pointer": lambda v: _USER_POINTER,
    "random": lambda v: v.rng.getrandbits(v.bits),
}
A_PAGE = "a page"
PAGE_KINDS = ("zero", "drop", "swap", "repeat")


def _fields(frame: FrameType | None, address: int, count: int) -> Iterator[tuple[str, Field]]:
    """Yield the fields of one read, by the frames that made it."""
    starts, object_bytes = [address], count
    while frame is not None:
        code, variables = frame.f_code, frame.f_locals
        if code is memory.read_each.__code__:
            starts, object_bytes = variables["group"], variables["size"]
        if code in (memory.Members.read.__code__, memory.Members.read_each.__code__):
            members = variables["self"]
            for name, offset, size in _members(members):
                for start in starts:
                    yield (
                        f"struct {members.name}.{name}".replace("struct struct", "struct"),
                        Field(start + offset, size),
                    )
            return
        if "/pipeline/collector/" in code.co_filename and not code.co_filename.endswith("/memory.py"):
            line = f"{code.co_filename.rpartition('/pipeline/collector/')[2]}:{code.co_name}:{frame.f_lineno}"
            for start in starts:
                for offset, size in _words(start, object_bytes):
                    is_alike = object_bytes <= 8 or object_bytes > MAX_OBJECT_BYTES
                    yield line + ("" if is_alike else f"+{offset}"), Field(start + offset, size)
            return
        frame = frame.f_back


def _members(members: memory.Members) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each field that is decoded, its offset in what is read, and its size."""
    offset = 0
    for name, (padding, code) in zip(
        members._fields._fields, re.findall(r"(\d+)x(\d*[a-zA-Z])", members._struct.format), strict=True
    ):
        offset += int(padding)
        size = struct.calcsize("<" + code)
        yield name, offset, size
        offset += size


def _words(start: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the size of each aligned word of an object, of a large one at most 64."""
    if count <= 8:
        yield 0, count
        return
    offsets = range(-start % 8, count - 7, 8)
    for offset in offsets if len(offsets) <= MAX_OBJECT_BYTES // 8 else random.Random(start).sample(offsets, 64):
        yield offset, 8
