"""All list_lrus and the owner of each: a superblock, a symbol, a slab object, or unknown."""

import struct
from collections import namedtuple

from drgn import FaultError, offsetof

from ..access.memory import Members, c_string, has_member, read, struct_prefix, text, walk_list
from ..status import CollectError
from . import slab, superblocks

# Bounds of walks over broken lists and tables.
_MAX_LIST_LRUS = 1 << 22
_MAX_MODULES = 1 << 14
_MAX_MODULE_SYMBOLS = 1 << 20
# Elf64_Sym: st_name, then st_info, st_other and st_shndx, st_value, st_size.
_ELF64_SYM = "I4xQQ"

_Link = namedtuple("_Link", "next")

Ownership = namedtuple("Ownership", "address owner superblock name position")
"""The owner of a list_lru.

address: of the ``struct list_lru``. owner: ``superblock``, ``symbol``, ``slab`` or ``unknown``. superblock: its
address, or None. name: ``dentry`` or ``inode``, the symbol, the slab cache with the offset in its object, or None.
position: index on the kernel's own list, None if it is not there.
"""


def find(prog, sbs):
    """Return an Ownership for each list_lru of the superblocks and for the others on the kernel's own list.

    :param sbs: list of SuperBlock.
    :raises CollectError: ``bad_core``: the kernel's list does not end.
    """
    ownerships = {}
    links = {}
    superblock_type = prog.type("struct super_block")
    for member, name in zip(superblocks.LRUS, ("dentry", "inode")):
        offset = offsetof(superblock_type, member)
        for sb in sbs:
            address = sb.address + offset
            ownerships[address] = Ownership(address, "superblock", sb.address, name, position=None)
            links[address] = _Link(sb.lru_links[member])
    for position, address in enumerate(_list_lru_addresses(prog, links)):
        if address in ownerships:
            ownerships[address] = ownerships[address]._replace(position=position)
        else:
            ownerships[address] = Ownership(address, *_identify_owner(prog, address), position=position)
    unknown = {address for address, ownership in ownerships.items() if ownership.owner == "unknown"}
    if unknown:
        for address, name in _module_symbols(prog, unknown).items():
            ownerships[address] = ownerships[address]._replace(owner="symbol", name=name)
    return list(ownerships.values())


def _list_lru_addresses(prog, links):
    """Yield the addresses on the kernel's list of list_lrus.

    Since commit 3eef11279ba5 ("mm: list_lru: only add memcg-aware lrus to the global lru list") (in v5.16) these are
    the memcg-aware ones, before that all.

    :param links: address of each list_lru that was read with its superblock to its _Link.
    """
    try:
        head = prog["memcg_list_lrus"]
    except LookupError:
        head = prog["list_lrus"]
    list_lru_type = prog.type("struct list_lru")
    members = Members(prog, list_lru_type, next="list.next")
    first, end = head.next.value_(), head.address_of_().value_()
    offset = offsetof(list_lru_type, "list")
    for address, _ in walk_list(prog, members, first, end, offset, _MAX_LIST_LRUS, decoded_structs=links):
        yield address


def _identify_owner(prog, address):
    """Return the owner, the superblock (always None) and the name of an Ownership."""
    # Without lockdep a lock_class_key has size 0 and can share the address of the list_lru that it is named after. If
    # several symbols have one address, drgn's index of /proc/kallsyms finds only the last by address, but each by name.
    symbols = prog.symbols(address)
    keys = [symbol.name for symbol in symbols if symbol.name.endswith("_key")]
    symbols += [symbol for key in keys for symbol in prog.symbols(key[: -len("_key")])]
    names = [symbol.name for symbol in symbols if symbol.address == address]
    if names:
        return "symbol", None, min(names, key=len)
    info = slab.object_info(prog, address)
    if info:
        cache, _ = text(c_string(prog, info.slab_cache.name.value_()))
        return "slab", None, "%s+%d" % (cache, address - info.address)
    return "unknown", None, None


def _module_symbols(prog, addresses):
    """Return the names of the modules' symbols that start exactly at one of the addresses, by address.

    The kernel keeps the symbol table of a module, with data symbols only if CONFIG_KALLSYMS_ALL. Names are optional, so
    tables that cannot be read are skipped.
    """
    names = {}
    try:
        module_type = prog.type("struct module")
        # Since commit 8244062ef1e5 ("modules: fix longstanding /proc/kallsyms vs module insertion race.") (in v4.5) the
        # table is in a struct mod_kallsyms. Before that, its members are in struct module.
        has_kallsyms = has_member(module_type, "kallsyms")
        module = Members(prog, module_type, next="list.next", **({"kallsyms": "kallsyms"} if has_kallsyms else {}))
        table_type = "struct mod_kallsyms" if has_kallsyms else module_type
        table = Members(prog, table_type, symtab="symtab", num_symtab="num_symtab", strtab="strtab")
        head = prog["modules"]
        first, end = head.next.value_(), head.address_of_().value_()
        for address, fields in walk_list(prog, module, first, end, offsetof(module_type, "list"), _MAX_MODULES):
            table_address = fields.kallsyms if has_kallsyms else address
            try:
                names.update(_symbols_at(prog, table.read(prog, table_address), addresses))
            except FaultError:
                continue
    except (LookupError, TypeError, FaultError, CollectError):
        pass
    return names


def _symbols_at(prog, table, addresses):
    """Yield the address and the name of each symbol in a ``struct mod_kallsyms`` that starts at one of the addresses.

    Symbols of size 0 are skipped: without lockdep a lock_class_key is one.
    """
    symbol = struct.Struct(struct_prefix(prog) + _ELF64_SYM)
    symtab = read(prog, table.symtab, min(table.num_symtab, _MAX_MODULE_SYMBOLS) * symbol.size)
    for name, value, size in symbol.iter_unpack(symtab):
        if value in addresses and name and size:
            yield value, text(c_string(prog, table.strtab + name))[0]
