"""The kernel's own BTF as a drgn type finder, so that ordinary drgn code runs without debug info.

BTF is the kernel's compact type table (Documentation/bpf/btf.rst), in its image since
commit e83b9f55448a ("kbuild: add ability to generate BTF type info for vmlinux") (in v5.2). One pass records the
start of each type and the strings that name types. A type is built when drgn asks for it, its members when they are
first accessed, so that opening a kernel costs that one pass only.
"""

import sys
from array import array

from drgn import Object, TypeEnumerator, TypeKind, TypeMember, TypeParameter

# BTF_KIND_* of include/uapi/linux/btf.h
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)

# 32-bit words after the three of struct btf_type: a fixed number, and a number for each of the vlen elements.
_FIXED_WORDS = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_WORDS_PER_ELEMENT = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}
_LAST_KIND = _ENUM64

# Kinds that drgn searches by name.
_DRGN_KINDS = {
    _INT: TypeKind.INT,
    _STRUCT: TypeKind.STRUCT,
    _UNION: TypeKind.UNION,
    _ENUM: TypeKind.ENUM,
    _ENUM64: TypeKind.ENUM,
    _TYPEDEF: TypeKind.TYPEDEF,
    _FLOAT: TypeKind.FLOAT,
}

# drgn spells integer types as C does, BTF as DWARF does.
_BTF_SPELLING = {
    "long": "long int",
    "unsigned long": "long unsigned int",
    "long long": "long long int",
    "unsigned long long": "long long unsigned int",
    "short": "short int",
    "unsigned short": "short unsigned int",
}
_DRGN_SPELLING = {btf_name: drgn_name for drgn_name, btf_name in _BTF_SPELLING.items()}

_MAGIC = 0xEB9F


class BtfError(ValueError):
    """The bytes are not BTF that this reader supports."""


class Btf:
    """The types of one kernel.

    :param prog: drgn program to which the types belong.
    :param blob: bytes between the kernel's ``__start_BTF`` and ``__stop_BTF``, or of ``/sys/kernel/btf/vmlinux``.
    :raises BtfError: the blob is not BTF, or has a kind of type newer than this reader.
    """

    def __init__(self, prog, blob):
        self._prog = prog
        try:
            self._parse(blob)
        except BtfError:
            raise
        except (IndexError, ValueError) as e:  # array raises these for a blob of a wrong size
            raise BtfError("BTF is damaged: %s" % e) from e

    def _parse(self, blob):
        is_little_endian = blob[:2] == _MAGIC.to_bytes(2, "little")
        if not is_little_endian and blob[:2] != _MAGIC.to_bytes(2, "big"):
            raise BtfError("BTF's magic number is missing")
        header_bytes, type_off, type_len, str_off, str_len = _words(blob[4:24], is_little_endian)
        types_start = header_bytes + type_off
        strings_start = header_bytes + str_off
        if strings_start + str_len > len(blob) or types_start + type_len > len(blob):
            raise BtfError("BTF is truncated")
        self._words = _words(blob[types_start : types_start + type_len], is_little_endian)
        self._strings = blob[strings_start : strings_start + str_len]
        self._types = {}
        self._enumerators = None
        self._index()

    def _index(self):
        """Record the first word of each type id, the type ids of each name, and the ids of the enums."""
        words = self._words
        extra_words = [(_FIXED_WORDS.get(kind, 0), _WORDS_PER_ELEMENT.get(kind, 0)) for kind in range(32)]
        is_searchable = [kind in _DRGN_KINDS for kind in range(32)]
        starts = array("I", [0])
        ids_by_name = {}
        enum_ids = []
        position, end = 0, len(words)
        while position < end:
            info = words[position + 1]
            # Seven bits, of which five are in use: a newer kind is refused, not misread.
            kind = info >> 24 & 0x7F
            if kind > _LAST_KIND or not kind:
                raise BtfError("kind %d of BTF type %d is not supported" % (kind, len(starts)))
            if is_searchable[kind]:
                name_off = words[position]
                if name_off:
                    ids_by_name.setdefault(name_off, []).append(len(starts))
                if kind in (_ENUM, _ENUM64):
                    enum_ids.append(len(starts))
            starts.append(position)
            fixed_words, words_per_element = extra_words[kind]
            position += 3 + fixed_words + words_per_element * (info & 0xFFFFFF)
        self._starts = starts
        self._ids_by_name = ids_by_name
        self._enum_ids = enum_ids

    def find_type(self, prog, kinds, name, filename):
        """Find a type by its name: a finder for Program.register_type_finder()."""
        if filename is not None:
            return None
        for type_id in self._ids_by_name.get(self._string_offset(_BTF_SPELLING.get(name, name)), ()):
            start = self._starts[type_id]
            kind = _DRGN_KINDS[self._words[start + 1] >> 24 & 0x1F]
            if kind is TypeKind.INT and self._words[start + 3] >> 24 & 4:
                kind = TypeKind.BOOL
            if kind in kinds:
                return self._type(type_id)
        return None

    def find_constant(self, name):
        """Return the drgn Object of an enumerator, or None.

        drgn's helpers look enumerators up by name (PG_slab, N_POSSIBLE, ...).
        """
        if self._enumerators is None:
            self._enumerators = self._index_enumerators()
        enumerator = self._enumerators.get(self._string_offset(name))
        if enumerator is None:
            return None
        type_id, value = enumerator
        return Object(self._prog, self._type(type_id), value)

    def _index_enumerators(self):
        """Return the type id and the value of each enumerator by the offset of its name."""
        enumerators = {}
        for type_id in self._enum_ids:
            for name_off, value in self._enum_values(self._starts[type_id]):
                enumerators.setdefault(name_off, (type_id, value))
        return enumerators

    def _string_offset(self, name):
        # libbpf's btf__dedup() deduplicates the string table, so a name has one offset.
        return self._strings.find(b"\0" + name.encode() + b"\0") + 1

    def _string(self, offset):
        return self._strings[offset : self._strings.index(0, offset)].decode()

    def _type(self, type_id):
        if type_id not in self._types:
            try:
                self._types[type_id] = self._build_type(type_id)
            except BtfError:
                raise
            # RecursionError: a type that refers to itself. TypeError: of drgn, for a type of the wrong kind.
            except (IndexError, OverflowError, RecursionError, TypeError, ValueError) as e:
                raise BtfError("type %d of BTF is damaged: %s" % (type_id, e)) from e
        return self._types[type_id]

    def _build_type(self, type_id):
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
            element_id, _, length = self._words[start + 3 : start + 6]
            return prog.array_type(self._type(element_id), length)
        if kind in (_STRUCT, _UNION):
            create_type = prog.struct_type if kind == _STRUCT else prog.union_type
            return create_type(name, size_or_type, self._members(start))
        if kind in (_ENUM, _ENUM64):
            is_signed = bool(info >> 31)
            int_type = prog.int_type("int" if is_signed else "unsigned int", size_or_type, is_signed)
            enumerators = [TypeEnumerator(self._string(off), value) for off, value in self._enum_values(start)]
            return prog.enum_type(name, int_type, enumerators)
        if kind == _FWD:
            return prog.union_type(name) if info >> 31 else prog.struct_type(name)
        if kind == _TYPEDEF:
            return prog.typedef_type(name, self._type(size_or_type))
        if kind == _FUNC_PROTO:
            return self._function_type(start)
        # Qualifiers and tags (volatile, const, restrict, __user, __rcu) do not change the layout.
        return self._type(size_or_type)

    def _int_type(self, name, size, encoding):
        name = _DRGN_SPELLING.get(name, name)
        if encoding >> 24 & 4:
            return self._prog.bool_type(name, size)
        return self._prog.int_type(name, size, bool(encoding >> 24 & 1))

    def _members(self, start):
        info = self._words[start + 1]
        members = []
        for position in range(start + 3, start + 3 + 3 * (info & 0xFFFF), 3):
            name_off, type_id, offset = self._words[position : position + 3]
            # With kind_flag the upper byte of the offset is the size of a bit field.
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
        """Yield the offset of the name and the value of each enumerator of an enum."""
        info = self._words[start + 1]
        is_signed = info >> 31
        words_per_value = _WORDS_PER_ELEMENT[info >> 24 & 0x1F]
        bits = 32 * (words_per_value - 1)
        for position in range(start + 3, start + 3 + words_per_value * (info & 0xFFFF), words_per_value):
            value = self._words[position + 1]
            if words_per_value == 3:
                value |= self._words[position + 2] << 32
            if is_signed and value >> (bits - 1):
                value -= 1 << bits
            yield self._words[position], value

    def _function_type(self, start):
        count = self._words[start + 1] & 0xFFFF
        parameters = []
        is_variadic = False
        for position in range(start + 3, start + 3 + 2 * count, 2):
            name_off, type_id = self._words[position : position + 2]
            if not name_off and not type_id:
                is_variadic = True
                continue
            name = self._string(name_off) if name_off else None
            parameters.append(TypeParameter(lambda type_id=type_id: self._type(type_id), name))
        return self._prog.function_type(self._type(self._words[start + 2]), parameters, is_variadic)


def _words(data, is_little_endian):
    words = array("I", data)
    if is_little_endian != (sys.byteorder == "little"):
        words.byteswap()
    return words
