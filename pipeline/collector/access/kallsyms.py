"""The kernel's symbols without debug info: from /proc/kallsyms, its tables in the kernel's memory, or a System.map.

VMCOREINFO has the addresses of the tables since commit 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols") and
commit f09bddbd8661 ("vmcoreinfo: add kallsyms_num_syms symbol") (both in v6.0). For an older core the tables are
searched for in the kernel's read-only data, which follows its text. Only the token table has the tokens "0" to "9" in
a row, and the other tables lie around it in the order in which scripts/kallsyms.c writes them. The tables are read
whole, in five reads.

Without CONFIG_KALLSYMS_ALL (Debian's arm64 up to 6.1) the tables name functions only. The variables that an audit
needs are then in the System.map of that build, which has to agree on the address of every function in both.
"""

import contextlib
import re
import struct
from bisect import bisect_right
from itertools import islice

from drgn import FaultError, Symbol, SymbolBinding, SymbolKind
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from ..status import CollectError
from .core_file import DAMAGED
from .memory import is_own, is_running, struct_prefix
from .symbol_names import SymbolNames

_CHUNK_BYTES = 1 << 20
_PAGE_BYTES = 4096
# Limit of the search for the tables: text and read-only data of a distribution's kernel have 25 to 60 MB.
_MAX_IMAGE_BYTES = 256 << 20

# The tokens "0" to "9" of the token table. On mostly empty pages, re is five times faster than bytes.find().
_DIGITS = re.compile(b"".join(b"%d\0" % digit for digit in range(10)))
# Limit of the token table and its index: 256 tokens of at most KSYM_NAME_LEN bytes (1 KB in practice) and 512 bytes.
_MAX_TOKEN_BYTES = 64 << 10
_MAX_SYMBOLS = 1 << 22
# Limit of the compressed names, with the tables between them and the tokens: distributions' kernels have 1 to 3 MB.
_MAX_NAME_BYTES = 64 << 20

# A global variable that every kernel has.
_VARIABLE = "init_uts_ns"
# __START_KERNEL_map of x86_64: the virtual address of physical address phys_base.
_START_KERNEL_MAP = 0xFFFFFFFF80000000


def load(prog, system_maps):
    """Return a finder of the kernel's symbols, for Program.register_symbol_finder().

    :param system_maps: paths of System.map files to try if the kernel's own table has functions only.
    :raises CollectError: ``no_types``: the table cannot be found or decoded, or lacks the variables.
    """
    find_own = _load_own_symbols(prog)
    if find_own(prog, _VARIABLE, None, True):
        return find_own
    if isinstance(find_own, _Table):
        functions = list(find_own.rows())
    else:
        functions = [(symbol.address, symbol.name.encode()) for symbol in find_own(prog, None, None, False)]
    for path in system_maps:
        table = _read_system_map(path, functions)
        if table:
            return table
    raise CollectError(
        "no_types",
        "this kernel's symbol table has functions only (built without CONFIG_KALLSYMS_ALL) and its System.map is "
        "not at %s" % " or ".join(system_maps),
    )


def _load_own_symbols(prog):
    """Return a finder over the kernel's own symbol table."""
    # Where /proc/kallsyms is hidden, or has zeros for addresses (kernel.kptr_restrict=2), the tables are read as from a
    # core.
    if is_own(prog):
        with contextlib.suppress(OSError):
            index = load_vmlinux_kallsyms(prog)
            if any(symbol.address for symbol in index(prog, "_stext", None, True)):
                return index
    try:
        return _read_kallsyms(prog)
    except (LookupError, ValueError, struct.error) as e:
        message = "the kernel's symbol table cannot be decoded: %s" % e
        raise CollectError("no_types", message, type(e).__name__) from e


def vmcoreinfo_symbols(prog):
    """Return the address of each symbol in VMCOREINFO, by its name."""
    symbols = re.findall(rb"^SYMBOL\((\w+)\)=([0-9a-f]{1,16})$", prog["VMCOREINFO"].string_(), re.MULTILINE)
    return {name.decode(): int(address, 16) for name, address in symbols}


class _Table:
    """Symbols by name and by address: a finder for Program.register_symbol_finder().

    :param names: sequence of each symbol's name, bytes, with a method find() that yields the indices of a name.
    :param addresses: sequence of each symbol's address, ascending.
    """

    def __init__(self, names, addresses):
        self._names = names
        self._addresses = addresses

    def __call__(self, prog, name, address, first_only):
        """Find symbols by name, by address, or all."""
        if name is not None:
            indices = self._names.find(name.encode())
        elif address is not None:
            indices = self._indices_at(address)
        else:
            indices = range(len(self._names))
        symbols = map(self._symbol, indices)
        if address is not None:
            symbols = (symbol for symbol in symbols if symbol.address <= address < symbol.address + symbol.size)
        return list(islice(symbols, 1) if first_only else symbols)

    def rows(self):
        """Yield the address and the name of each symbol."""
        return zip(self._addresses, self._names)

    def _indices_at(self, address):
        """Return the indices of the symbols with the highest address up to this one."""
        end = bisect_right(self._addresses, address)
        start = end
        while start and self._addresses[start - 1] == self._addresses[end - 1]:
            start -= 1
        return range(start, end)

    def _symbol(self, i):
        # The table has no sizes: a symbol ends at the next address.
        address = self._addresses[i]
        next_index = bisect_right(self._addresses, address)
        end = self._addresses[next_index] if next_index < len(self._addresses) else address + 1
        return Symbol(self._names[i].decode(), address, end - address, SymbolBinding.UNKNOWN, SymbolKind.UNKNOWN)


def _read_kallsyms(prog):
    """Return the _Table in the kernel's memory (kernel/kallsyms.c)."""
    symbols = vmcoreinfo_symbols(prog)
    if "_stext" not in symbols:
        raise CollectError("no_types", "VMCOREINFO lacks the address of the kernel's text")
    if not any(_read_with_holes(prog, symbols["_stext"], _PAGE_BYTES)):
        part = "a page table of the kernel" if _is_text_in_memory(prog, symbols["_stext"]) else "the kernel's text"
        reason = "" if is_running(prog) else ": " + DAMAGED
        raise CollectError("bad_core", "%s is missing%s" % (part, reason))
    endian = struct_prefix(prog)
    tables = {name[9:]: address for name, address in symbols.items() if name.startswith("kallsyms_")}
    if "names" not in tables:
        tables = _find_tables(prog, symbols["_stext"], endian)
    count = prog.read_u32(tables["num_syms"])
    if count > _MAX_SYMBOLS:
        raise CollectError("no_types", "the kernel's symbol table claims %d symbols" % count)
    names = _read_names(prog, tables, count, endian)
    return _Table(names, _read_addresses(prog, tables, count, endian, names, symbols["_stext"]))


def _is_text_in_memory(prog, text_address):
    """Whether the page of the kernel's text that cannot be read by its address is at its physical address.

    VMCOREINFO has phys_base on x86_64 and kimage_voffset on arm64; elsewhere the answer is False.
    """
    numbers = dict(
        re.findall(rb"^NUMBER\((phys_base|kimage_voffset)\)=(\w+|-\d+)$", prog["VMCOREINFO"].string_(), re.M)
    )
    if b"phys_base" in numbers:
        physical = text_address - _START_KERNEL_MAP + int(numbers[b"phys_base"], 0)
    elif b"kimage_voffset" in numbers:
        physical = text_address - int(numbers[b"kimage_voffset"], 0)
    else:
        return False
    try:
        return any(prog.read(physical, _PAGE_BYTES, True))
    except (FaultError, OverflowError):  # OverflowError: not an address
        return False


def _read_system_map(path, functions):
    """Return the _Table of a System.map, relocated by KASLR's offset, or None if the file is of another build.

    :param functions: address and name of each symbol in the kernel's own table.
    """
    try:
        with open(path, "rb") as f:
            rows = [(int(address, 16), name) for address, _, name in map(bytes.split, f)]
    except (OSError, ValueError):  # Debian's linux-image has a sentence in place of its System.map
        return None
    base = next((address for address, name in rows if name == b"_stext"), None)
    if base is None:
        return None
    kaslr_offset = next(address for address, name in functions if name == b"_stext") - base
    # Lower addresses are per-CPU symbols and constants, which KASLR does not move.
    rows = [(address + kaslr_offset, name) for address, name in rows if address >= base]
    names = [name for _, name in rows]
    row_set, name_set = set(rows), set(names)
    if any(name in name_set and (address, name) not in row_set for address, name in functions):
        return None
    return _Table(_NameList(names), [address for address, _ in rows])


class _NameList(list):
    """The names of symbols, found by a dictionary."""

    def __init__(self, names):
        super().__init__(names)
        self._indices = {}
        for index, name in enumerate(names):
            self._indices.setdefault(name, []).append(index)

    def find(self, name):
        """Return the index of each symbol with a name, the last one first."""
        return reversed(self._indices.get(name, []))


def _read_names(prog, tables, count, endian):
    """Return the SymbolNames of the kernel."""
    start = tables["names"]
    # The token table lies after the names in every order of the tables.
    data = _read_between(prog, start, tables["token_table"], _MAX_NAME_BYTES)
    token_bytes = _read_between(prog, tables["token_table"], tables["token_index"], _MAX_TOKEN_BYTES)
    token_index = struct.unpack(endian + "256H", prog.read(tables["token_index"], 512))
    return SymbolNames(data, count, [token_bytes[offset : token_bytes.index(0, offset)] for offset in token_index])


def _read_between(prog, start, end, max_bytes):
    if not 0 < end - start <= max_bytes:
        raise ValueError("a table of %d bytes" % (end - start))
    return prog.read(start, end - start)


def _read_addresses(prog, tables, count, endian, names, stext):
    """Return the _Addresses of the symbols, by the encoding that gives _stext the address in VMCOREINFO."""
    for table, code, decode in _address_encodings(prog, tables):
        entry = struct.Struct(endian + code)
        addresses = _Addresses(prog.read(tables[table], entry.size * count), entry, decode)
        if any(addresses[i] == stext for i in names.find(b"_stext")):
            return addresses
    raise CollectError("no_types", "the kernel's symbol table does not agree with VMCOREINFO")


class _Addresses:
    """The symbols' addresses, a sequence, each decoded when it is asked for.

    :param data: bytes of the table.
    :param entry: struct.Struct of one entry.
    :param decode: function of an index and its entry that returns the address.
    """

    def __init__(self, data, entry, decode):
        self._data = data
        self._entry = entry
        self._decode = decode

    def __len__(self):
        return len(self._data) // self._entry.size

    def __getitem__(self, index):
        return self._decode(index, *self._entry.unpack_from(self._data, index * self._entry.size))

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))


def _address_encodings(prog, tables):
    """Yield each encoding of addresses that kernels with these tables use: table, format of an entry, and decoder."""
    if "addresses" in tables:
        yield "addresses", "Q", lambda index, address: address
    elif tables.get("relative_base"):
        # Relative to a base since commit 2213e9a66bb8 ("kallsyms: add support for relative offsets in kallsyms address
        # table") (in v4.6). With CONFIG_KALLSYMS_ABSOLUTE_PERCPU only negative offsets are relative.
        base = prog.read_word(tables["relative_base"])
        yield "offsets", "i", lambda index, offset: base - 1 - offset if offset < 0 else offset
        yield "offsets", "I", lambda index, offset: base + offset
    else:
        # Relative to the entry's own address since commit a081b5789255 ("kallsyms: Get rid of kallsyms relative base")
        # (in v7.0).
        start = tables["offsets"]
        yield "offsets", "i", lambda index, offset: start + 4 * index + offset


def _find_tables(prog, base, endian):
    """Return the addresses of the tables, found in the kernel image.

    :param base: address of the image, which starts with the text.
    """
    image = bytearray()
    search_start = 0
    while len(image) < _MAX_IMAGE_BYTES:
        image += _read_with_holes(prog, base + len(image), _CHUNK_BYTES)
        search_end = len(image) - _MAX_TOKEN_BYTES
        for digits in _DIGITS.finditer(image, search_start, search_end):
            try:
                tables = _tables_around(image, digits.start(), endian, base)
            except (IndexError, ValueError, struct.error):  # digits outside the token table
                continue
            if tables:
                return {name: base + offset for name, offset in tables.items()}
        search_start = search_end - len(_DIGITS.pattern)
    raise CollectError(
        "no_types",
        "no symbol table in the first %d MB of the kernel image (filtered out of the core, or built without "
        "CONFIG_KALLSYMS)" % (_MAX_IMAGE_BYTES >> 20),
    )


def _read_with_holes(prog, address, size):
    """Read memory with zeros for pages that are missing from a filtered core."""
    try:
        return prog.read(address, size)
    except FaultError:
        if size == _PAGE_BYTES:
            return bytes(size)
    pages = range(address, address + size, _PAGE_BYTES)
    return b"".join([_read_with_holes(prog, page, _PAGE_BYTES) for page in pages])


def _tables_around(image, digits, endian, base):
    """Return the offsets in the image of the tables around the digits, or None if these are not of a token table.

    The order before commit 404bad70fcf7 ("scripts/kallsyms: change the output order") (in v6.4), each table aligned to
    8 bytes: addresses, or offsets and relative_base since commit 2213e9a66bb8 ("kallsyms: add support for relative
    offsets in kallsyms address table") (in v4.6); num_syms, names, markers, token_table, token_index.

    :param digits: offset of _DIGITS in the image.
    :param base: address of the image.
    """
    end = digits
    for _ in range(256 - ord("0")):
        end = image.index(0, end) + 1
    token_index = _align_up(end)
    index = struct.unpack_from(endian + "256H", image, token_index)
    token_table = digits - index[ord("0")]
    if index[0] or list(index) != sorted(index) or token_table < 0:
        return None

    # num_syms and the markers are u32, and u64 before commit 80ffbaa5b1bd ("kallsyms: reduce size a little on 64-bit")
    # (in v4.20).
    for code in ("I", "Q"):
        number = struct.Struct(endian + code)
        names, num_syms = _find_names(image, *_find_markers(image, token_table, number), number)
        if names is not None:
            break
    else:
        return None
    # The low half of a big-endian u64 is its second one.
    num_syms_offset = names - (4 if number.format == ">Q" else 8)
    tables = {"token_table": token_table, "token_index": token_index, "names": names, "num_syms": num_syms_offset}
    words = struct.unpack_from(endian + "8Q", image, names - 8 - 64)
    # Symbols of the image, the last ones, are in order. Offsets, two in a word, are no addresses of it.
    if list(words) == sorted(words) and base <= words[0] and words[-1] <= base + _MAX_IMAGE_BYTES:
        tables["addresses"] = names - 8 - 8 * num_syms
    else:
        tables["relative_base"] = names - 16
        tables["offsets"] = names - 16 - _align_up(4 * num_syms)
    return tables


def _find_markers(image, end, number):
    """Return the offset and the values of the table of markers, which ends where the token table starts.

    Each marker is the offset in names of every 256th symbol. There are no values if this is not such a table.

    :param number: struct.Struct of a marker.
    """
    position = end - number.size
    if not number.unpack_from(image, position)[0]:
        position -= number.size
    values = []
    while position > 0:
        values += number.unpack_from(image, position)
        if len(values) > 1 and values[-1] >= values[-2]:
            break
        if not values[-1]:
            return position, values[::-1]
        position -= number.size
    return position, []


def _find_names(image, markers_offset, markers, number):
    """Return the offset of the table of names and the number of symbols, or None and 0."""
    if len(markers) < 2:
        return None, 0
    last_names = markers_offset - markers[-1]
    for names in range(last_names & ~7, max(8, last_names - 256 * 128), -8):
        (num_syms,) = number.unpack_from(image, names - 8)
        if -(-num_syms // 256) == len(markers) and _skip_names(image, names, 256) == names + markers[1]:
            return names, num_syms
    return None, 0


def _skip_names(image, position, count):
    """Return the position after a number of names, each a length byte and that number of token bytes."""
    for _ in range(count):
        position += 1 + image[position]
        if position >= len(image):
            break
    return position


def _align_up(offset):
    return offset + 7 & ~7
