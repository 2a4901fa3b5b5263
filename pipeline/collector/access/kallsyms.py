"""The kernel's symbols without debug info: from /proc/kallsyms, its tables in the kernel's memory, or a System.map.

VMCOREINFO says where the tables are from v6.0 on (5fd8fea935a1, f09bddbd8661). For an older core they are searched
for in the kernel's read-only data, which follows its text: the token table is the only place that holds the tokens
"0" to "9" in a row, and the other tables lie around it in the order in which scripts/kallsyms.c writes them.
The tables are read whole, in five reads.

Without CONFIG_KALLSYMS_ALL (Debian's arm64 up to 6.1) they name functions only. What else an audit needs is then
in the System.map of that build, which has to agree with every function that both name.
"""

import re
import struct
from bisect import bisect_right

from drgn import FaultError, PlatformFlags, ProgramFlags, Symbol, SymbolBinding, SymbolKind
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from ..status import CollectError

_CHUNK_BYTES = 1 << 20
_PAGE_BYTES = 4096
# The text and read-only data of a distribution's kernel are 25 to 60 MB.
_IMAGE_LIMIT_BYTES = 256 << 20

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
# 256 tokens of at most KSYM_NAME_LEN bytes are far less in practice (1 KB), and their index 512 bytes.
_TOKENS_LIMIT_BYTES = 64 << 10
_MOST_SYMBOLS = 1 << 22

# A global variable of every kernel.
_VARIABLE = "init_uts_ns"


def load(prog, system_maps):
    """Return a finder of the kernel's symbols, for Program.register_symbol_finder().

    :param system_maps: paths at which the System.map may be of a kernel whose own table has functions only.
    :raises CollectError: ``no_types``: the table cannot be found or decoded, or lacks the variables.
    """
    find = _own_table(prog)
    if find(prog, _VARIABLE, None, True):
        return find
    for path in system_maps:
        table = _read_system_map(prog, path, find)
        if table:
            return table.find
    raise CollectError(
        "no_types",
        "this kernel's symbol table has functions only (it is built without CONFIG_KALLSYMS_ALL) and its System.map "
        "is not at %s; give --vmlinux" % " or ".join(system_maps),
    )


def _own_table(prog):
    """Return a finder over the kernel's own symbol table."""
    local = ProgramFlags.IS_LIVE | ProgramFlags.IS_LOCAL
    if prog.flags & local == local:
        index = load_vmlinux_kallsyms(prog)
        # With kernel.kptr_restrict=2 /proc/kallsyms has zeros for addresses, and the tables are read as from a core.
        if any(symbol.address for symbol in index(prog, "_stext", None, True)):
            return index
    try:
        return _read_kallsyms(prog).find
    except (IndexError, ValueError, struct.error) as e:
        message = "the kernel's symbol table cannot be decoded: %s; give --vmlinux" % e
        raise CollectError("no_types", message, type(e).__name__) from e


def vmcoreinfo_symbols(prog):
    """Return the addresses of the symbols that VMCOREINFO names."""
    found = re.findall(rb"^SYMBOL\((\w+)\)=([0-9a-f]+)$", prog["VMCOREINFO"].string_(), re.MULTILINE)
    return {name.decode(): int(address, 16) for name, address in found}


class _Table:
    """Symbols by name and by address.

    :param names: bytes each. :param addresses: of these, ascending.
    """

    def __init__(self, names, addresses):
        self._names = names
        self._addresses = addresses
        self._by_name = dict(zip(names, range(len(names))))

    def find(self, prog, name, address, one):
        """Answer drgn's search for symbols."""
        if name is not None:
            wanted = name.encode()
            found = [self._by_name[wanted]] if wanted in self._by_name else []
            if found and not one:
                found = [i for i, other in enumerate(self._names) if other == wanted]
        elif address is not None:
            found = self._containing(address)
        else:
            found = range(len(self._names))
        symbols = [self._symbol(i) for i in found]
        if address is not None:
            symbols = [symbol for symbol in symbols if symbol.address <= address < symbol.address + symbol.size]
        return symbols[:1] if one else symbols

    def _containing(self, address):
        end = bisect_right(self._addresses, address)
        start = end
        while start and self._addresses[start - 1] == self._addresses[end - 1]:
            start -= 1
        return range(start, end)

    def _symbol(self, i):
        # The table has no sizes: a symbol reaches to the next address.
        address = self._addresses[i]
        after = bisect_right(self._addresses, address)
        end = self._addresses[after] if after < len(self._addresses) else address + 1
        return Symbol(self._names[i].decode(), address, end - address, SymbolBinding.UNKNOWN, SymbolKind.UNKNOWN)


def _read_kallsyms(prog):
    """Return the _Table that the kernel has in its memory (kernel/kallsyms.c)."""
    symbols = vmcoreinfo_symbols(prog)
    if "_stext" not in symbols:
        raise CollectError("no_types", "VMCOREINFO does not say where the kernel's text is; give --vmlinux")
    if not any(_read_with_holes(prog, symbols["_stext"], _PAGE_BYTES)):
        raise CollectError("bad_core", "the kernel's text is missing: the core is truncated, zeroed or filtered")
    endian = "<" if prog.platform.flags & PlatformFlags.IS_LITTLE_ENDIAN else ">"
    tables = {name[9:]: address for name, address in symbols.items() if name.startswith("kallsyms_")}
    if "names" not in tables:
        tables = _find_tables(prog, symbols["_stext"], endian)
    count = prog.read_u32(tables["num_syms"])
    if count > _MOST_SYMBOLS:
        raise CollectError("no_types", "the kernel's symbol table claims %d symbols; give --vmlinux" % count)
    names = _decode_names(prog, tables, count, endian)
    return _Table(names, _decode_addresses(prog, tables, count, endian, names, symbols["_stext"]))


def _read_system_map(prog, path, functions):
    """Return the _Table of a System.map, moved to where KASLR put the kernel, or None where it is of another build.

    :param functions: finder of this kernel's functions.
    """
    try:
        with open(path, "rb") as f:
            rows = [(int(address, 16), name) for address, _, name in map(bytes.split, f)]
    except (OSError, ValueError):  # in place of its System.map Debian's linux-image has a sentence
        return None
    # Below are per-CPU symbols and constants, which do not move.
    rows = [(address, name) for address, name in rows if address >> 63]
    addresses, names = zip(*rows) if rows else ((), ())
    if b"_stext" not in names:
        return None
    moved = functions(prog, "_stext", None, True)[0].address - addresses[names.index(b"_stext")]
    placed, named = set(rows), set(names)
    for symbol in functions(prog, None, None, False):
        name = symbol.name.encode()
        if name in named and (symbol.address - moved, name) not in placed:
            return None
    return _Table(names, [address + moved for address in addresses])


def _decode_names(prog, tables, count, endian):
    """Return the symbols' names; the first character of what the table holds is nm's type."""
    start = tables["names"]
    # The token table lies behind the names in every order of the tables.
    data = prog.read(start, tables["token_table"] - start)
    token_bytes = prog.read(tables["token_table"], tables["token_index"] - tables["token_table"])
    token_index = struct.unpack(endian + "256H", prog.read(tables["token_index"], 512))
    token = [token_bytes[at : token_bytes.index(0, at)] for at in token_index].__getitem__
    names = []
    join = b"".join
    at = 0
    for _ in range(count):
        length = data[at]
        at += 1
        if length & 0x80:  # two bytes since v6.1 (73bbb94466fd)
            length = length & 0x7F | data[at] << 7
            at += 1
        end = at + length
        names.append(join(map(token, data[at:end]))[1:])
        at = end
    return names


def _decode_addresses(prog, tables, count, endian, names, stext):
    """Return the symbols' addresses: of the ways in which kernels store them, the one that _stext confirms."""
    if "addresses" in tables:
        return struct.unpack("%s%dQ" % (endian, count), prog.read(tables["addresses"], 8 * count))
    at = tables["offsets"]
    offsets = struct.unpack("%s%di" % (endian, count), prog.read(at, 4 * count))
    if tables.get("relative_base"):
        base = prog.read_word(tables["relative_base"])
        # From a base (v4.6, 2213e9a66bb8); with CONFIG_KALLSYMS_ABSOLUTE_PERCPU what is not negative is absolute.
        ways = (
            lambda: [base - 1 - offset if offset < 0 else offset for offset in offsets],
            lambda: [base + (offset & 0xFFFFFFFF) for offset in offsets],
        )
    else:
        # From the entry's own place, v7.0.
        ways = (lambda: [place + offset for place, offset in zip(range(at, at + 4 * count, 4), offsets)],)
    for way in ways:
        addresses = way()
        if b"_stext" in names and addresses[names.index(b"_stext")] == stext:
            return addresses
    raise CollectError("no_types", "the kernel's symbol table does not agree with VMCOREINFO; give --vmlinux")


def _find_tables(prog, base, endian):
    """Return the addresses of the tables, found in the image that starts with the text at base."""
    image = bytearray()
    searched = 0
    while len(image) < _IMAGE_LIMIT_BYTES:
        image += _read_with_holes(prog, base + len(image), _CHUNK_BYTES)
        end = len(image) - _TOKENS_LIMIT_BYTES
        at = image.find(_DIGITS, searched, end)
        while at >= 0:
            try:
                tables = _tables_around(image, at, endian)
            except (IndexError, ValueError, struct.error):  # digits of something else
                tables = None
            if tables:
                return {name: base + offset for name, offset in tables.items()}
            at = image.find(_DIGITS, at + 1, end)
        searched = end - len(_DIGITS)
    raise CollectError(
        "no_types",
        "no symbol table in the first %d MB of the kernel image (filtered out of the core, or built without "
        "CONFIG_KALLSYMS); give --vmlinux" % (_IMAGE_LIMIT_BYTES >> 20),
    )


def _read_with_holes(prog, address, size):
    """Read memory of which pages may be missing from a filtered core; these read as zeros."""
    try:
        return prog.read(address, size)
    except FaultError:
        if size <= _PAGE_BYTES:
            return bytes(size)
    half = size // 2
    return _read_with_holes(prog, address, half) + _read_with_holes(prog, address + half, half)


def _tables_around(image, digits, endian):
    """Return the offsets of the tables around the tokens of the digits, or None where it is no token table.

    The order up to v6.3 (404bad70fcf7), each table aligned to 8: addresses, or offsets and relative_base since
    v4.6 (2213e9a66bb8); num_syms, names, markers, token_table, token_index.
    """
    end = digits
    for _ in range(256 - ord("0")):
        end = image.index(0, end) + 1
    token_index = _align_up(end)
    index = struct.unpack_from(endian + "256H", image, token_index)
    token_table = digits - index[ord("0")]
    if index[0] or list(index) != sorted(index) or token_table < 0:
        return None

    for markers_at, markers in _markers(image, token_table, endian):
        names, num_syms = _names(image, markers_at, markers, endian)
        if names is not None:
            break
    else:
        return None
    found = {"token_table": token_table, "token_index": token_index, "names": names, "num_syms": names - 8}
    last = struct.unpack_from(endian + "8Q", image, names - 8 - 64)
    if list(last) == sorted(last) and last[0] >> 48 == 0xFFFF:
        found["addresses"] = names - 8 - 8 * num_syms
    else:
        found["relative_base"] = names - 16
        found["offsets"] = names - 16 - _align_up(4 * num_syms)
    return found


def _markers(image, end, endian):
    """Yield what may be the offset and the values of the table that ends before the token table.

    It holds where in names every 256th symbol starts: as u32, and as u64 before v4.20 (80ffbaa5b1bd).
    """
    for code, size in (("I", 4), ("Q", 8)):
        at = end - size
        if not struct.unpack_from(endian + code, image, at)[0]:
            at -= size
        values = []
        while at > 0:
            values.append(struct.unpack_from(endian + code, image, at)[0])
            if len(values) > 1 and values[-1] >= values[-2]:
                break
            if not values[-1]:
                yield at, values[::-1]
                break
            at -= size


def _names(image, markers_at, markers, endian):
    """Return the offset of names and the number of symbols, or None and 0."""
    if len(markers) < 2:
        return None, 0
    for names in range((markers_at - markers[-1]) & ~7, max(8, markers_at - markers[-1] - 256 * 128), -8):
        (num_syms,) = struct.unpack_from(endian + "I", image, names - 8)
        if -(-num_syms // 256) == len(markers) and _skip_names(image, names, 256) == names + markers[1]:
            return names, num_syms
    return None, 0


def _skip_names(image, at, count):
    """Step over symbols: each a length byte and as many token bytes."""
    for _ in range(count):
        at += 1 + image[at]
        if at >= len(image):
            break
    return at


def _align_up(offset):
    return offset + 7 & ~7
