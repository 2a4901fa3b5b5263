"""Which list_lrus there are, and whose: a superblock's, a symbol, a part of a slab object, or nobody's known."""

import struct
from collections import namedtuple

from drgn import FaultError, offsetof

from ..access.memory import Members, c_string, has_member, read, text, walk_list
from ..status import CollectError
from . import slab, superblocks

_MOST_LIST_LRUS = 1 << 22
_MOST_MODULES = 1 << 14
_MOST_MODULE_SYMBOLS = 1 << 20
# Elf64_Sym: st_name, then st_info, st_other and st_shndx, st_value, st_size.
_ELF64_SYM = struct.Struct("<I4xQQ")

_Link = namedtuple("_Link", "next")

Owned = namedtuple("Owned", "address owner superblock name")
"""Address of a ``struct list_lru``; ``superblock``, ``symbol``, ``slab`` or ``unknown``; address of its superblock or
None; ``dentry``, ``inode``, the symbol, the slab cache with the offset in its object, or None."""


def find(prog, sbs):
    """Return an Owned for each list_lru of the superblocks, and for the others on the kernel's own list.

    :param sbs: of SuperBlock.
    :raises CollectError: ``bad_core``: the kernel's list does not end.
    """
    found = {}
    links = {}
    superblock_type = prog.type("struct super_block")
    for member, name in zip(superblocks.LRUS, ("dentry", "inode")):
        offset = offsetof(superblock_type, member)
        for sb in sbs:
            address = sb.address + offset
            found[address] = Owned(address, "superblock", sb.address, name)
            links[address] = _Link(sb.lru_links[member])
    for address in _listed(prog, links):
        if address not in found:
            found[address] = _owned(prog, address)
    unknown = {address for address, owned in found.items() if owned.owner == "unknown"}
    if unknown:
        for address, name in _module_symbols(prog, unknown).items():
            found[address] = Owned(address, "symbol", None, name)
    return list(found.values())


def _listed(prog, links):
    """Yield the addresses on list_lrus: all of them, or since v5.16 (3eef11279ba5) the memcg-aware ones.

    :param links: the _Link of the list_lrus that were read with their superblocks, by address.
    """
    try:
        head = prog["memcg_list_lrus"]
    except LookupError:
        head = prog["list_lrus"]
    list_lru_type = prog.type("struct list_lru")
    members = Members(prog, list_lru_type, next="list.next")
    first, end = head.next.value_(), head.address_of_().value_()
    offset = offsetof(list_lru_type, "list")
    for address, _ in walk_list(prog, members, first, end, offset, _MOST_LIST_LRUS, known=links):
        yield address


def _owned(prog, address):
    # A lock_class_key of no size (without lockdep) shares the address of the list_lru that it is named after. Of the
    # symbols at one address drgn's index of /proc/kallsyms finds only the last by address, but each by its name.
    symbols = prog.symbols(address)
    keys = [symbol.name for symbol in symbols if symbol.name.endswith("_key")]
    symbols += [symbol for key in keys for symbol in prog.symbols(key[: -len("_key")])]
    names = [symbol.name for symbol in symbols if symbol.address == address]
    if names:
        return Owned(address, "symbol", None, min(names, key=len))
    info = slab.object_info(prog, address)
    if info:
        cache = info.slab_cache.name.string_().decode(errors="backslashreplace")
        return Owned(address, "slab", None, "%s+%d" % (cache, address - info.address))
    return Owned(address, "unknown", None, None)


def _module_symbols(prog, addresses):
    """Return the names of modules' symbols that lie exactly at one of a set of addresses, by address.

    The kernel keeps the symbol table of a module, its data only with CONFIG_KALLSYMS_ALL. A name is worth no failure:
    what cannot be read is left out.
    """
    names = {}
    try:
        module_type = prog.type("struct module")
        # Before v4.5 (8244062ef1e5) the table's members are the module's own.
        apart = has_member(module_type, "kallsyms")
        module = Members(prog, module_type, next="list.next", **({"kallsyms": "kallsyms"} if apart else {}))
        table_type = "struct mod_kallsyms" if apart else module_type
        table = Members(prog, table_type, symtab="symtab", num_symtab="num_symtab", strtab="strtab")
        head = prog["modules"]
        first, end = head.next.value_(), head.address_of_().value_()
        for address, fields in walk_list(prog, module, first, end, offsetof(module_type, "list"), _MOST_MODULES):
            try:
                names.update(_symbols_at(prog, table.read(prog, fields.kallsyms if apart else address), addresses))
            except FaultError:
                continue
    except (LookupError, TypeError, FaultError, CollectError):
        pass
    return names


def _symbols_at(prog, table, addresses):
    """Yield the address and the name of the symbols in a ``struct mod_kallsyms`` that lie exactly at addresses.

    One of no size is not meant: without lockdep a lock_class_key has none.
    """
    symtab = read(prog, table.symtab, min(table.num_symtab, _MOST_MODULE_SYMBOLS) * _ELF64_SYM.size)
    for name, value, size in _ELF64_SYM.iter_unpack(symtab):
        if value in addresses and name and size:
            yield value, text(c_string(prog, table.strtab + name))[0]
