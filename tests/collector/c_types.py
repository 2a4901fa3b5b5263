"""Types of a drgn program declared in C, as a kernel's source has them, laid out by C's rules on 64-bit machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from drgn import Program, Type, TypeMember


class CType(NamedTuple):
    """A type: its size and alignment in bytes, and what makes the drgn type, once those that it names are known."""

    size: int
    align: int
    make: Callable[[], Type]


_SCALARS = {
    "bool": ("_Bool", 1), "char": ("char", 1), "unsigned char": ("unsigned char", 1), "int": ("int", 4),
    "unsigned int": ("unsigned int", 4), "long": ("long", 8), "unsigned long": ("unsigned long", 8),
}  # fmt: skip


def declare(prog: Program, text: str) -> None:
    """Give a program the structs and typedefs of a text.

    It may have pointers, arrays, nested and anonymous structs and unions, comments, and __aligned(N) behind a struct.
    """
    types = _Parser(prog, text).types

    def find(prog: Program, kinds: Any, name: str, filename: str | None) -> Type | None:
        found = types[name].make() if name in types else None
        return found if found and found.kind in kinds else None

    prog.register_type_finder("declared", find, enable_index=0)


class _Parser:
    def __init__(self, prog: Program, text: str) -> None:
        self.prog = prog
        self.types: dict[str, CType] = {}
        self.tokens = re.findall(r"\w+|[{}\[\];*()]", re.sub(r"/\*.*?\*/", "", text, flags=re.S))[::-1]
        while self.tokens:
            token = self.next()
            if token == "typedef":
                name, aliased = self.member(self.next())
                assert name
                self.types[name] = CType(aliased.size, aliased.align, self.typedef(name, aliased))
            else:
                assert token == "struct", token
                tag = self.next()
                self.expect("{")
                self.types[tag] = self.aggregate("struct", tag)
                self.expect(";")

    def next(self) -> str:
        return self.tokens.pop()

    def expect(self, *wanted: str) -> None:
        for token in wanted:
            found = self.next()
            assert found == token, f"{found} where {token} should be"

    def typedef(self, name: str, aliased: CType) -> Callable[[], Type]:
        return lambda: self.prog.typedef_type(name, aliased.make())

    def aggregate(self, kind: str, tag: str | None) -> CType:
        """What stands behind the opening brace of a struct or union, up to its last token before the name."""
        members: list[TypeMember] = []
        size, align = 0, 1
        while (token := self.next()) != "}":
            name, member = self.member(token)
            at = 0 if kind == "union" else _round_up(size, member.align)
            members.append(TypeMember(member.make, name, 8 * at))
            size, align = max(size, at + member.size), max(align, member.align)
        if self.tokens[-1] == "__aligned":
            self.expect("__aligned", "(")
            align = int(self.next())
            self.expect(")")
        size = _round_up(size, align)
        make = self.prog.struct_type if kind == "struct" else self.prog.union_type
        made: list[Type] = []

        def once() -> Type:
            if not made:
                made.append(make(tag, size, members))
            return made[0]

        return CType(size, align, once)

    def member(self, token: str) -> tuple[str | None, CType]:
        """A member that starts with a token, and its semicolon."""
        words = []
        while token not in (";", "*", "[", "{"):
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
            base = self.named(" ".join(words))
        if token == "[":
            token = self.next()
            base = self.array(base, 0 if token == "]" else int(token))
            self.expect(*(";" if token == "]" else ("]", ";")))
        return name, base

    def named(self, name: str) -> CType:
        if name in _SCALARS:
            known, size = _SCALARS[name]
            return CType(size, size, lambda: self.prog.type(known))
        return self.types[name.removeprefix("struct ")]

    def array(self, element: CType, length: int) -> CType:
        return CType(element.size * length, element.align, lambda: self.prog.array_type(element.make(), length))

    def pointer(self, target: str, stars: int) -> CType:
        def make() -> Type:
            try:
                made = self.prog.void_type() if target == "void" else self.prog.type(target)
            except LookupError:
                made = self.prog.struct_type(target.removeprefix("struct "), None, None)
            for _ in range(stars):
                made = self.prog.pointer_type(made)
            return made

        return CType(8, 8, make)


def _round_up(size: int, align: int) -> int:
    return -(-size // align) * align
