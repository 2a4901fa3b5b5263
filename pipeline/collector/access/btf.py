"""The kernel's own BTF as a drgn type finder, so that ordinary drgn code runs without debug info.

BTF is the kernel's compact type table (Documentation/bpf/btf.rst), in its image since v5.2 (e83b9f55448a). One
pass notes where each type starts and which strings name types; a type is built when drgn asks for it and its
members when they are looked at, so that opening a kernel costs that one pass only.
"""

import sys
from array import array

from drgn import Object, TypeEnumerator, TypeKind, TypeMember, TypeParameter

# enum of include/uapi/linux/btf.h
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)

# Words that follow the three of struct btf_type: a fixed number and a number for each of vlen.
_FIXED_WORDS = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_WORDS_EACH = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}
_LAST_KIND = _ENUM64

_FINDABLE = {
    _INT: TypeKind.INT,
    _STRUCT: TypeKind.STRUCT,
    _UNION: TypeKind.UNION,
    _ENUM: TypeKind.ENUM,
    _ENUM64: TypeKind.ENUM,
    _TYPEDEF: TypeKind.TYPEDEF,
    _FLOAT: TypeKind.FLOAT,
}

# drgn asks for C's own spelling, BTF has the compiler's (DWARF's).
_INT_SPELLING = {
    "long": "long int",
    "unsigned long": "long unsigned int",
    "long long": "long long int",
    "unsigned long long": "long long unsigned int",
    "short": "short int",
    "unsigned short": "short unsigned int",
}
_DRGN_SPELLING = {compiler: c for c, compiler in _INT_SPELLING.items()}

_MAGIC = 0xEB9F


class BtfError(ValueError):
    """The bytes are not a BTF blob that this reader knows."""


class Btf:
    """The types of one kernel.

    :param prog: the drgn program that the types are made for.
    :param blob: what lies between the kernel's ``__start_BTF`` and ``__stop_BTF``, or ``/sys/kernel/btf/vmlinux``.
    :raises BtfError: not BTF, or a kind of type newer than this reader.
    """

    def __init__(self, prog, blob):
        self._prog = prog
        try:
            self._read(blob)
        except BtfError:
            raise
        except (IndexError, ValueError) as e:  # what array makes of a blob that is cut or odd
            raise BtfError("BTF is damaged: %s" % e) from e

    def _read(self, blob):
        little = blob[:2] == _MAGIC.to_bytes(2, "little")
        if not little and blob[:2] != _MAGIC.to_bytes(2, "big"):
            raise BtfError("no BTF magic")
        header = _words(blob[4:24], little)
        header_bytes, type_off, type_len, str_off, str_len = header
        types = header_bytes + type_off
        strings = header_bytes + str_off
        if strings + str_len > len(blob) or types + type_len > len(blob):
            raise BtfError("BTF is cut short")
        self._words = _words(blob[types : types + type_len], little)
        self._strings = blob[strings : strings + str_len]
        self._built = {}
        self._enumerators = None
        self._index()

    def _index(self):
        """Note the word where each type id starts, and the ids that each name string names."""
        words = self._words
        extra = [(_FIXED_WORDS.get(kind, 0), _WORDS_EACH.get(kind, 0)) for kind in range(32)]
        findable = [kind in _FINDABLE for kind in range(32)]
        starts = array("I", [0])
        named = {}
        at, end = 0, len(words)
        while at < end:
            info = words[at + 1]
            # Seven bits, of which five are in use: a kind that is newer is refused, not misread.
            kind = info >> 24 & 0x7F
            if kind > _LAST_KIND or not kind:
                raise BtfError("BTF kind %d at type %d is not known" % (kind, len(starts)))
            if findable[kind]:
                name_off = words[at]
                if name_off:
                    named.setdefault(name_off, []).append(len(starts))
            starts.append(at)
            fixed, each = extra[kind]
            at += 3 + fixed + each * (info & 0xFFFFFF)
        self._starts = starts
        self._named = named

    def find_type(self, prog, kinds, name, filename):
        """Answer drgn's search for a type: a finder for Program.register_type_finder()."""
        if filename is not None:
            return None
        for type_id in self._named.get(self._string_offset(_INT_SPELLING.get(name, name)), ()):
            start = self._starts[type_id]
            kind = _FINDABLE[self._words[start + 1] >> 24 & 0x1F]
            if kind is TypeKind.INT and self._words[start + 3] >> 24 & 4:
                kind = TypeKind.BOOL
            if kind in kinds:
                return self._type(type_id)
        return None

    def find_constant(self, name):
        """Return the drgn Object of an enumerator, or None.

        drgn's helpers ask for enumerators by name (PG_slab, N_POSSIBLE, ...).
        """
        if self._enumerators is None:
            self._enumerators = self._index_enumerators()
        found = self._enumerators.get(self._string_offset(name))
        return None if found is None else Object(self._prog, self._type(found[0]), found[1])

    def _index_enumerators(self):
        found = {}
        for type_id in range(1, len(self._starts)):
            start = self._starts[type_id]
            if self._words[start + 1] >> 24 & 0x1F in (_ENUM, _ENUM64):
                for name_off, value in self._enum_values(start):
                    found.setdefault(name_off, (type_id, value))
        return found

    def _string_offset(self, name):
        # The string table is deduplicated (libbpf's btf__dedup), so a name has one offset.
        return self._strings.find(b"\0" + name.encode() + b"\0") + 1

    def _string(self, offset):
        return self._strings[offset : self._strings.index(0, offset)].decode()

    def _type(self, type_id):
        if type_id not in self._built:
            self._built[type_id] = self._build(type_id)
        return self._built[type_id]

    def _build(self, type_id):
        prog = self._prog
        if not type_id:
            return prog.void_type()
        start = self._starts[type_id]
        name_off, info, size_or_type = self._words[start : start + 3]
        kind = info >> 24 & 0x1F
        name = self._string(name_off) if name_off else None
        if kind == _INT:
            return self._int_type(name, size_or_type, self._words[start + 3])
        if kind == _FLOAT:
            return prog.float_type(name, size_or_type)
        if kind == _PTR:
            return prog.pointer_type(self._type(size_or_type))
        if kind == _ARRAY:
            element, _, length = self._words[start + 3 : start + 6]
            return prog.array_type(self._type(element), length)
        if kind in (_STRUCT, _UNION):
            make = prog.struct_type if kind == _STRUCT else prog.union_type
            return make(name, size_or_type, self._members(start))
        if kind in (_ENUM, _ENUM64):
            signed = bool(info >> 31)
            compatible = prog.int_type("int" if signed else "unsigned int", size_or_type, signed)
            enumerators = [TypeEnumerator(self._string(off), value) for off, value in self._enum_values(start)]
            return prog.enum_type(name, compatible, enumerators)
        if kind == _FWD:
            return prog.union_type(name) if info >> 31 else prog.struct_type(name)
        if kind == _TYPEDEF:
            return prog.typedef_type(name, self._type(size_or_type))
        if kind == _FUNC_PROTO:
            return self._function_type(start)
        # Qualifiers and tags (volatile, const, restrict, __user, __rcu) change no layout.
        return self._type(size_or_type)

    def _int_type(self, name, size, encoding):
        name = _DRGN_SPELLING.get(name, name)
        if encoding >> 24 & 4:
            return self._prog.bool_type(name, size)
        return self._prog.int_type(name, size, bool(encoding >> 24 & 1))

    def _members(self, start):
        info = self._words[start + 1]
        members = []
        for at in range(start + 3, start + 3 + 3 * (info & 0xFFFF), 3):
            name_off, type_id, offset = self._words[at : at + 3]
            # With kind_flag the offset's upper byte is the size of a bit field.
            bit_field_size, bit_offset = (offset >> 24, offset & 0xFFFFFF) if info >> 31 else (0, offset)
            members.append(
                TypeMember(
                    self._member_type(type_id, bit_field_size),
                    self._string(name_off) if name_off else None,
                    bit_offset,
                )
            )
        return members

    def _member_type(self, type_id, bit_field_size):
        if not bit_field_size:
            return lambda: self._type(type_id)
        return lambda: Object(self._prog, self._type(type_id), bit_field_size=bit_field_size)

    def _enum_values(self, start):
        info = self._words[start + 1]
        signed = info >> 31
        each = 2 if info >> 24 & 0x1F == _ENUM else 3
        bits = 32 * (each - 1)
        for at in range(start + 3, start + 3 + each * (info & 0xFFFF), each):
            value = self._words[at + 1]
            if each == 3:
                value |= self._words[at + 2] << 32
            if signed and value >> (bits - 1):
                value -= 1 << bits
            yield self._words[at], value

    def _function_type(self, start):
        count = self._words[start + 1] & 0xFFFF
        parameters = []
        variadic = False
        for at in range(start + 3, start + 3 + 2 * count, 2):
            name_off, type_id = self._words[at : at + 2]
            if not name_off and not type_id:
                variadic = True
                continue
            name = self._string(name_off) if name_off else None
            parameters.append(TypeParameter(lambda type_id=type_id: self._type(type_id), name))
        return self._prog.function_type(self._type(self._words[start + 2]), parameters, variadic)


def _words(data, little):
    words = array("I", data)
    if little != (sys.byteorder == "little"):
        words.byteswap()
    return words
