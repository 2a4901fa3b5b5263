"""Bulk reads of kernel memory: whole structs in one read, many objects in few."""

import struct
from collections import namedtuple

from drgn import FaultError, PlatformFlags, ProgramFlags, TypeKind, offsetof, sizeof

from ..status import CollectError

# Objects are read together where they lie on the same or on neighbouring pages of this size, so that no page is
# read that holds none of them: it could be missing from a filtered core or from the kernel's mappings.
_PAGE_SHIFT = 12
_PAGE_BYTES = 1 << _PAGE_SHIFT
_LONGEST_READ_BYTES = 1 << 20
_STRING_PART_BYTES = 64
_LONGEST_STRING_BYTES = 256


class Members:
    """Chosen members of a C struct, decoded together from one read.

    :param struct_type: the struct, as drgn Type or name.
    :param paths: name of a decoded field to the path of the member, such as ``next="s_list.next"``. Integers and
        pointers become int, char arrays bytes.
    :raises LookupError: the struct lacks a member.
    """

    def __init__(self, prog, struct_type, **paths):
        struct_type = prog.type(struct_type)
        self.name = struct_type.type_name()
        members = sorted(
            (offsetof(struct_type, path), _format(struct_type, path), name) for name, path in paths.items()
        )
        self._start = members[0][0]
        code = "<" if prog.platform.flags & PlatformFlags.IS_LITTLE_ENDIAN else ">"
        at = self._start
        for offset, member_code, _ in members:
            code += "%dx%s" % (offset - at, member_code)
            at = offset + struct.calcsize("<" + member_code)
        self._struct = struct.Struct(code)
        self._fields = namedtuple("Fields", [name for _, _, name in members])
        self.end = at

    def read(self, prog, address):
        """Read and decode the members of the struct at an address, in one read."""
        return self._fields._make(self._struct.unpack(read(prog, address + self._start, self._struct.size)))

    def decode(self, data, offset=0):
        """Decode the members of the struct that starts at an offset of data."""
        return self._fields._make(self._struct.unpack_from(data, offset + self._start))


def is_running(prog):
    """Return whether the kernel runs, and changes, while it is read."""
    return bool(prog.flags & ProgramFlags.IS_LIVE)


def read(prog, address, size):
    """Read memory; an address that no object can have is a fault, also where a core's page 0 can be read as NULL."""
    if not _PAGE_BYTES <= address < (1 << 64) - size:
        raise FaultError("a broken pointer", address & ((1 << 64) - 1))
    return prog.read(address, size)


def walk_list(prog, members, first, head, offset, most, known=None):
    """Yield the address and the decoded members of each struct on a kernel list.

    :param members: Members with a field ``next``. :param first: the first link. :param head: what the last struct's
        next is: the address of the list_head, or 0. :param offset: of the link in the struct.
    :param known: what is known of structs that were read before, by address: an object with ``next``.
    :raises CollectError: ``bad_core``: the list goes round without its head, or has more than ``most`` structs.
    """
    seen = set()
    link = first
    while link != head:
        if link in seen or len(seen) == most:
            raise CollectError("bad_core", "a list of %s does not end after %d" % (members.name, len(seen)))
        seen.add(link)
        address = link - offset
        fields = known[address] if known and address in known else members.read(prog, address)
        yield address, fields
        link = fields.next


def has_member(struct_type, path):
    """Return whether a struct has a member, given as a path such as ``lru.nr_items``."""
    try:
        offsetof(struct_type, path)
    except (LookupError, TypeError):  # no such member; a member of what is no struct
        return False
    return True


def _format(struct_type, path):
    member_type = struct_type
    for name in path.split("."):
        member_type = _unaliased(_unaliased(member_type).member(name).type)
    if member_type.kind is TypeKind.ARRAY:
        return "%ds" % sizeof(member_type)
    if member_type.kind is TypeKind.POINTER:
        return "Q"
    if member_type.kind is TypeKind.ENUM:
        member_type = member_type.type
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[sizeof(member_type)]
    return code if member_type.kind is TypeKind.INT and member_type.is_signed else code.upper()


def _unaliased(some_type):
    # drgn 0.0.31 has no Type.unaliased().
    while some_type.kind is TypeKind.TYPEDEF:
        some_type = some_type.type
    return some_type


def read_each(prog, addresses, size):
    """Read objects of one size, many in a read.

    :return: dict of address to bytes.
    """
    objects = {}
    for start, end, run in _runs(sorted(set(addresses)), size):
        data = read(prog, start, end - start)
        for address in run:
            objects[address] = data[address - start : address - start + size]
    return objects


def _runs(addresses, size):
    run = []
    start = end = 0
    for address in addresses:
        near = address >> _PAGE_SHIFT <= (end - 1 >> _PAGE_SHIFT) + 1
        if run and near and address + size - start <= _LONGEST_READ_BYTES:
            run.append(address)
            end = max(end, address + size)
            continue
        if run:
            yield start, end, run
        run, start, end = [address], address, address + size
    if run:
        yield start, end, run


def c_string(prog, address):
    """Return the bytes of a string of at most 256 bytes, without its NUL; drgn 0.0.31 has no read_c_string()."""
    found = b""
    while len(found) < _LONGEST_STRING_BYTES:
        # Not beyond the page: the next one could be missing.
        at = address + len(found)
        part, end, _ = read(prog, at, min(_STRING_PART_BYTES, _PAGE_BYTES - at % _PAGE_BYTES)).partition(b"\0")
        found += part
        if end:
            break
    return found[:_LONGEST_STRING_BYTES]


def text(data):
    """Return bytes of the kernel as text and, where they are not UTF-8, as hex; else None.

    What is not UTF-8 is backslash-escaped in the text.
    """
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return data.decode(errors="backslashreplace"), data.hex()
