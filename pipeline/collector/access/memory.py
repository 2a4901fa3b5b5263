"""Bulk reads of kernel memory: a whole struct in one read, many objects in few reads."""

import struct
import sys
from array import array
from collections import namedtuple
from itertools import compress

from drgn import FaultError, PlatformFlags, ProgramFlags, TypeKind, offsetof, sizeof

from ..status import CollectError

# What a walk raises where the kernel lacks a member, or where memory is missing, damaged, or changes while it is read.
UNREADABLE = (
    FaultError, LookupError, AttributeError, ValueError, TypeError, ArithmeticError, struct.error, CollectError
)  # fmt: skip
# Objects on the same or neighbouring pages of this size are read together. A page without any of them is not read: it
# could be missing from a filtered core or from the kernel's mappings.
_PAGE_SHIFT = 12
_PAGE_BYTES = 1 << _PAGE_SHIFT
_MAX_READ_BYTES = 1 << 20
_STRING_CHUNK_BYTES = 64
# Places in a word, as in memory, of the bytes that differ most between addresses of page-sized objects: bits 8 to 39.
_DISTINCTIVE_BYTES = [place for place, byte in enumerate(array("Q", [0xFFFFFFFF << 8]).tobytes()) if byte]
# PATH_MAX: no system call takes a longer name or path. But directories can be nested to a longer path, and a broken
# string or path has no end.
MAX_PATH_BYTES = 4096
# In the place of what is left out of a longer one. No path of the kernel has it: each slash is before a name.
CUT = b"//..."


class Members:
    """Selected members of a C struct, decoded together from one read.

    :param struct_type: drgn Type of the struct, or its name.
    :param paths: name of each decoded field to the path of its member, such as ``next="s_list.next"``. Integers and
        pointers become int, char arrays bytes.
    :ivar name: of the struct.
    :ivar end: offset behind the last selected member.
    :raises LookupError: the struct lacks a member.
    """

    def __init__(self, prog, struct_type, **paths):
        struct_type = prog.type(struct_type)
        self.name = struct_type.type_name()
        members = sorted(
            (offsetof(struct_type, path), _format(struct_type, path), name) for name, path in paths.items()
        )
        self._start = members[0][0]
        code = struct_prefix(prog)
        end = self._start
        for offset, member_code, _ in members:
            code += "%dx%s" % (offset - end, member_code)
            end = offset + struct.calcsize("<" + member_code)
        self._struct = struct.Struct(code)
        self._fields = namedtuple("Fields", [name for _, _, name in members])
        self.end = end

    def read(self, prog, address):
        """Read and decode the members of the struct at an address, in one read."""
        return self._fields._make(self._struct.unpack(read(prog, address + self._start, self._struct.size)))

    def read_each(self, prog, addresses):
        """Read and decode the struct at each of many addresses, several in each read: dict by address."""
        data = read_each(prog, {address + self._start for address in addresses}, self._struct.size)
        return {
            start - self._start: self._fields._make(self._struct.unpack(members)) for start, members in data.items()
        }

    def decode(self, data, offset=0):
        """Decode the members of the struct that starts at an offset of data."""
        return self._fields._make(self._struct.unpack_from(data, offset + self._start))


def byte_order(prog):
    """Return the byte order of the kernel, ``little`` or ``big``."""
    order = prog.cache.get(byte_order)
    if order is None:
        is_little_endian = prog.platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
        order = prog.cache[byte_order] = "little" if is_little_endian else "big"
    return order


def struct_prefix(prog):
    """Return the first character of the struct module's formats for the byte order of the kernel."""
    return "<" if byte_order(prog) == "little" else ">"


def words(prog, data):
    """Return kernel memory as an array of its 64-bit words."""
    values = array("Q", data)
    if byte_order(prog) != sys.byteorder:
        values.byteswap()
    return values


class WordFinder:
    """Finds the words of a set in arrays of words, faster than a loop over each array.

    Whole byte strings and long integers, one for each place of a byte in the words, tell which words of an array have
    at each place a byte that a word of the set has there. Only these few are looked up.
    """

    def __init__(self, wanted_words):
        self._wanted_words = frozenset(wanted_words)
        wanted_bytes = array("Q", self._wanted_words).tobytes()
        self._tables = {
            place: bytes(byte in wanted_bytes[place::8] for byte in range(256)) for place in _DISTINCTIVE_BYTES
        }

    def indexes(self, values):
        """Return the indexes of the elements of an array of words that are in the set."""
        data = values.tobytes()
        marks = -1
        for place, table in self._tables.items():
            marks &= int.from_bytes(data[place::8].translate(table), "little")
            if not marks:
                return []
        marks = marks.to_bytes(len(values), "little")
        is_wanted = map(self._wanted_words.__contains__, compress(values, marks))
        return list(compress(compress(range(len(values)), marks), is_wanted))


def is_own(prog):
    """Whether a program is the running kernel of this machine, whose /proc and /sys are then that kernel's."""
    return is_running(prog) and bool(prog.flags & ProgramFlags.IS_LOCAL)


def is_running(prog):
    """Whether the kernel runs, and so changes, while it is read."""
    return bool(prog.flags & ProgramFlags.IS_LIVE)


def read(prog, address, size):
    """Return the bytes of kernel memory at an address.

    :raises FaultError: memory is missing, or no object can have this address. Some cores let page 0 be read.
    """
    if not _PAGE_BYTES <= address < (1 << 64) - size:
        raise FaultError("a broken pointer", address & ((1 << 64) - 1))
    return prog.read(address, size)


def read_word(prog, address):
    """Return the 64-bit word of kernel memory at an address.

    :raises FaultError: as for read().
    """
    return int.from_bytes(read(prog, address, 8), byte_order(prog))


def check_range(low, value, high, name):
    """Return a value that the kernel bounds.

    :raises CollectError: ``bad_core``: it is out of its bounds.
    """
    if not low <= value <= high:
        raise CollectError("bad_core", "%s is %d, not between %d and %d" % (name, value, low, high))
    return value


def walk_list(prog, members, first, head, offset, max_structs, decoded_structs=None):
    """Yield the address and the decoded members of each struct on a kernel list.

    :param members: Members with a field ``next``.
    :param first: address of the first link.
    :param head: ``next`` of the last link: the address of the list_head, or 0.
    :param offset: of the link in the struct.
    :param max_structs: limit of the list's length.
    :param decoded_structs: structs that need not be read again, by address: objects with ``next``.
    :raises CollectError: ``bad_core``: the list is a cycle without its head, or longer than the limit.
    """
    visited_links = set()
    link = first
    while link != head:
        if link in visited_links or len(visited_links) == max_structs:
            message = "a list of %s does not end after %d entries" % (members.name, len(visited_links))
            raise CollectError("bad_core", message)
        visited_links.add(link)
        address = link - offset
        fields = decoded_structs.get(address) if decoded_structs else None
        if fields is None:
            fields = members.read(prog, address)
        yield address, fields
        link = fields.next


def has_member(struct_type, path):
    """Whether a struct has a member, given as a path such as ``lru.nr_items``."""
    try:
        offsetof(struct_type, path)
    except (LookupError, TypeError):  # the member is missing; a part of the path is not a struct
        return False
    return True


def member_type(struct_type, path):
    """Return the type of a struct's member, without typedefs.

    :param path: such as ``lru.nr_items``, or ``nodeinfo[0]`` for an element of an array.
    """
    found_type = struct_type
    for name in path.split("."):
        name, bracket, _ = name.partition("[")
        found_type = _strip_typedefs(_strip_typedefs(found_type).member(name).type)
        if bracket:
            found_type = _strip_typedefs(found_type.type)
    return found_type


def _format(struct_type, path):
    """Return the format character of the struct module for a member."""
    found_type = member_type(struct_type, path)
    if found_type.kind is TypeKind.ARRAY:
        return "%ds" % sizeof(found_type)
    if found_type.kind is TypeKind.POINTER:
        return "Q"
    if found_type.kind is TypeKind.ENUM:
        found_type = found_type.type
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[sizeof(found_type)]
    return code if found_type.kind is TypeKind.INT and found_type.is_signed else code.upper()


def _strip_typedefs(some_type):
    # drgn 0.0.31 lacks Type.unaliased().
    while some_type.kind is TypeKind.TYPEDEF:
        some_type = some_type.type
    return some_type


def read_each(prog, addresses, size):
    """Read objects of one size, several in each read.

    :return: dict of address to bytes.
    """
    objects = {}
    for start, end, group in _group_addresses(sorted(set(addresses)), size):
        data = read(prog, start, end - start)
        for address in group:
            objects[address] = data[address - start : address - start + size]
    return objects


def _group_addresses(addresses, size):
    """Yield the start, the end and the addresses of each range of memory that one read covers."""
    group = []
    start = end = 0
    for address in addresses:
        is_near = address >> _PAGE_SHIFT <= (end - 1 >> _PAGE_SHIFT) + 1
        if group and is_near and address + size - start <= _MAX_READ_BYTES:
            group.append(address)
            end = max(end, address + size)
            continue
        if group:
            yield start, end, group
        group, start, end = [address], address, address + size
    if group:
        yield start, end, group


def c_string(prog, address):
    """Return the bytes of a string without its NUL; of one that is longer than MAX_PATH_BYTES the start, then CUT.

    drgn 0.0.31 lacks read_c_string().
    """
    string = b""
    while len(string) <= MAX_PATH_BYTES:
        # No read crosses into the next page, which could be missing. Few strings need more than one read.
        start = address + len(string)
        rest_of_page = _PAGE_BYTES - start % _PAGE_BYTES
        size = rest_of_page if string else min(_STRING_CHUNK_BYTES, rest_of_page)
        chunk, terminator, _ = read(prog, start, size).partition(b"\0")
        string += chunk
        if terminator:
            break
    return string if len(string) <= MAX_PATH_BYTES else string[:MAX_PATH_BYTES] + CUT


def c_strings(prog, addresses):
    """Return what c_string() does for each of many addresses, several in each read: dict by address."""
    size = _STRING_CHUNK_BYTES
    data = read_each(prog, (address for address in addresses if address % _PAGE_BYTES <= _PAGE_BYTES - size), size)
    strings = {}
    for address in addresses:
        string, terminator, _ = data.get(address, b"").partition(b"\0")
        strings[address] = string if terminator else c_string(prog, address)
    return strings


def bounded_path(path):
    """Return a path, or CUT and the end of one that is longer than MAX_PATH_BYTES, which may be cut already."""
    return path if len(path) <= MAX_PATH_BYTES else CUT + path[len(CUT) :][-MAX_PATH_BYTES:]


def text(data):
    """Return bytes of the kernel as text, and as hex if they are not UTF-8, else None.

    Bytes that are not UTF-8 are backslash-escaped in the text.
    """
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return data.decode(errors="backslashreplace"), data.hex()


def escaped_text(data):
    """Return bytes of the kernel as text from which they can be had again, for columns without one of bytes.

    Backslashes and bytes that are not UTF-8 are backslash-escaped.
    """
    return data.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
