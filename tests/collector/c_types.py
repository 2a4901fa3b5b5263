"""Types of a drgn program from C declarations of a kernel's source, laid out by C's rules on 64-bit machines."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from drgn import Object, Program, Type, TypeMember


class CType(NamedTuple):
    """A type: its size and alignment in bytes, and a function that makes the drgn type when all types are declared."""

    size: int
    align: int
    make: Callable[[], Type]
    bits: int = 0
    """Width of a bit field, 0 for any other member."""


_SCALARS = {
    "bool": ("_Bool", 1), "char": ("char", 1), "unsigned char": ("unsigned char", 1), "int": ("int", 4),
    "unsigned int": ("unsigned int", 4), "long": ("long", 8), "unsigned long": ("unsigned long", 8),
}  # fmt: skip


def declare(prog: Program, text: str) -> None:
    """Declare the structs and typedefs of a text in a program.

    The text may have pointers, arrays, bit fields, nested and anonymous structs and unions, comments, and __aligned(N)
    after a struct. A bit field must fit behind the one before it.
    """
    types = _Parser(prog, text).types

    def find(prog: Program, kinds: Any, name: str, filename: str | None) -> Type | None:
        declared_type = types[name].make() if name in types else None
        return declared_type if declared_type and declared_type.kind in kinds else None

    prog.register_type_finder("declared", find, enable_index=0)


class _Parser:
    def __init__(self, prog: Program, text: str) -> None:
        self.prog = prog
        self.types: dict[str, CType] = {}
        self.tokens = re.findall(r"\w+|[{}\[\];:*()]", re.sub(r"/\*.*?\*/", "", text, flags=re.S))[::-1]
        while self.tokens:
            token = self.next()
            if token == "typedef":
                name, target = self.member(self.next())
                assert name
                self.types[name] = CType(target.size, target.align, self.typedef(name, target))
            else:
                assert token == "struct", token
                tag = self.next()
                self.expect("{")
                self.types[tag] = self.aggregate("struct", tag)
                self.expect(";")

    def next(self) -> str:
        return self.tokens.pop()

    def expect(self, *tokens: str) -> None:
        for token in tokens:
            next_token = self.next()
            assert next_token == token, f"expected {token}, not {next_token}"

    def typedef(self, name: str, target: CType) -> Callable[[], Type]:
        return lambda: self.prog.typedef_type(name, target.make())

    def aggregate(self, kind: str, tag: str | None) -> CType:
        """Parse a struct or union after its opening brace, up to the last token before the name."""
        members: list[TypeMember] = []
        bits, align = 0, 1
        while (token := self.next()) != "}":
            name, member = self.member(token)
            offset = 0 if kind == "union" else bits if member.bits else _round_up(bits, 8 * member.align)
            members.append(TypeMember(self.bit_field(member) if member.bits else member.make, name, offset))
            bits, align = max(bits, offset + (member.bits or 8 * member.size)), max(align, member.align)
        if self.tokens[-1] == "__aligned":
            self.expect("__aligned", "(")
            align = int(self.next())
            self.expect(")")
        size = _round_up(bits, 8 * align) // 8
        make = self.prog.struct_type if kind == "struct" else self.prog.union_type
        return CType(size, align, functools.cache(lambda: make(tag, size, members)))

    def bit_field(self, member: CType) -> Callable[[], Object]:
        return lambda: Object(self.prog, member.make(), bit_field_size=member.bits)

    def member(self, token: str) -> tuple[str | None, CType]:
        """Parse a member from its first token to its semicolon."""
        words = []
        while token not in (";", "*", "[", "{", ":"):
            words.append(token)
            token = self.next()
        words = [word for word in words if word != "const"]
        name: str | None
        if token == "{":
            base = self.aggregate(words[0], None)
            name, token = None, self.next()
            if token not in (";", "["):
                name, token = token, self.next()
        elif token == "*":
            stars = 0
            while token == "*":
                stars, token = stars + 1, self.next()
            base = self.pointer(" ".join(words), stars)
            name, token = token, self.next()
        else:
            *words, name = words
            base = self.type_by_name(" ".join(words))
        if token == ":":
            base = base._replace(bits=int(self.next()))
            self.expect(";")
        if token == "[":
            token = self.next()
            base = self.array(base, 0 if token == "]" else int(token))
            self.expect(*(";" if token == "]" else ("]", ";")))
        return name, base

    def type_by_name(self, name: str) -> CType:
        if name in _SCALARS:
            drgn_name, size = _SCALARS[name]
            return CType(size, size, lambda: self.prog.type(drgn_name))
        return self.types[name.removeprefix("struct ")]

    def array(self, element: CType, length: int) -> CType:
        return CType(element.size * length, element.align, lambda: self.prog.array_type(element.make(), length))

    def pointer(self, target: str, stars: int) -> CType:
        def make() -> Type:
            try:
                pointer_type = self.prog.void_type() if target == "void" else self.prog.type(target)
            except LookupError:
                pointer_type = self.prog.struct_type(target.removeprefix("struct "), None, None)
            for _ in range(stars):
                pointer_type = self.prog.pointer_type(pointer_type)
            return pointer_type

        return CType(8, 8, make)


def _round_up(size: int, align: int) -> int:
    return -(-size // align) * align
