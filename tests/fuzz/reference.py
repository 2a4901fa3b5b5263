"""A second reading of the memory that an audit has read: slow, with drgn's helpers, one object at a time.

The walk of tests/reference.py for cores that lack most pages. What is missing from a core, or damaged so that the walk
cannot go on, is left out here, and so are figures that only a whole core has: the comparison is of what both have.
Nothing here may come from pipeline/ but the types of the program.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from drgn import FaultError, Object, Program, cast, container_of
from drgn.helpers import ValidationError
from drgn.helpers.common.type import enum_type_to_class
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.fs import mount_dst, super_block_for_each_mount
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import compound_head, page_to_virt, totalram_pages, virt_to_page
from drgn.helpers.linux.nodemask import for_each_node_state
from drgn.helpers.linux.slab import find_containing_slab_cache, find_slab_cache, slab_cache_usage
from drgn.helpers.linux.xarray import xa_for_each

from tests import reference
from tests.reference import CSS_ONLINE, counter, has_member, nr_node_ids
from tests.reference_charges import Owners, inode_caches, is_slab_head, slab_of

UNREADABLE = (FaultError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, ValidationError)
MAX_ENTRIES = 100_000
"""Entries of a list after which it has no end."""
MAX_OBJECTS = 64
"""Objects of a list_lru whose slab cache is looked up."""
_ERROR_POINTERS = (1 << 64) - 4095


class Endless(Exception):
    """A list without an end."""


def tables(prog: Program, slabs: Iterable[int] | None) -> dict[str, list[dict[str, Any]]]:
    """Return rows of the tables of hosts, each with the columns that can be read here.

    :param slabs: addresses of pages of slabs, among others, whose charged objects are counted; None to count none.
    """
    superblocks = list(bounded(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list")))
    memcgs = list(bounded(css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_())))
    memcg_rows = [row(memcg_columns(css)) for css in memcgs]
    lrus = list(list_lrus(prog, superblocks))
    caches = object_sizes(lrus)
    ((cache_name, object_bytes),) = caches.keys() if len(caches) == 1 else [(None, None)]
    ids = array_lengths(lrus)
    lru_rows = [row(list_lru_columns(lru, object_bytes, ids)) for lru in lrus]
    if slabs is not None:
        add_charges(prog, slabs, lrus, lru_rows, memcgs, memcg_rows)
    return {
        "targets": [row(target_columns(prog, superblocks, memcg_rows, lru_rows, cache_name))],
        "superblocks": [row(superblock_columns(sb)) for sb in superblocks],
        "list_lrus": lru_rows,
        "memcgs": memcg_rows,
    }


def list_lrus(prog: Program, superblocks: list[Object]) -> Iterator[Object]:
    """Yield every list_lru: the two of each superblock, then the others on the kernel's own list."""
    addresses = set()
    for sb in superblocks:
        for lru in (sb.s_dentry_lru, sb.s_inode_lru):
            addresses.add(lru.address_)
            yield lru.address_of_()
    head = prog["memcg_list_lrus" if "memcg_list_lrus" in prog else "list_lrus"]
    for lru in bounded(list_for_each_entry("struct list_lru", head.address_of_(), "list")):
        if lru.value_() not in addresses:
            yield lru


def bounded(entries: Iterator[Any]) -> Iterator[Any]:
    yield from islice(entries, MAX_ENTRIES)
    if next(entries, None) is not None:
        raise Endless


def row(columns: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Evaluate the columns that can be read."""
    values = {}
    for name, function in columns.items():
        try:
            values[name] = function()
        except UNREADABLE:
            continue
    return values


def text(value: Object) -> str:
    return str(value.string_().decode(errors="backslashreplace"))


def reversible_text(value: Object) -> str:
    """The text of a column that has none for bytes beside it: a backslash is escaped too."""
    return str(value.string_().replace(b"\\", b"\\\\").decode(errors="backslashreplace"))


def target_columns(
    prog: Program,
    superblocks: list[Object],
    memcgs: list[dict[str, Any]],
    lrus: list[dict[str, Any]],
    cache_name: str | None,
) -> dict[str, Callable[[], Any]]:
    name = prog["init_uts_ns"].name
    page_bytes = prog["PAGE_SIZE"].value_()
    online_ids = [memcg.get("cache_id") for memcg in memcgs[1:] if memcg.get("state") == "online"]

    def vm_stat(item: str) -> int:
        items = enum_type_to_class(prog.type("enum node_stat_item"), "Items")
        return int(prog["vm_node_stat"][items[item].value].counter) * page_bytes

    return {
        "host": lambda: reversible_text(name.nodename),
        "kernel_release": lambda: text(name.release),
        "kernel_version": lambda: text(name.version),
        "arch": lambda: text(name.machine),
        "page_bytes": lambda: page_bytes,
        "memory_bytes": lambda: int(totalram_pages(prog)) * page_bytes,
        "slab_unreclaimable_bytes": lambda: vm_stat("NR_SLAB_UNRECLAIMABLE_B"),
        "slab_reclaimable_bytes": lambda: vm_stat("NR_SLAB_RECLAIMABLE_B"),
        "percpu_bytes": lambda: prog["pcpu_nr_populated"].value_() * prog["pcpu_nr_units"].value_() * page_bytes,
        "nr_node_ids": lambda: nr_node_ids(prog),
        "possible_nodes": lambda: list(for_each_node_state(prog, prog["N_POSSIBLE"])),
        "online_nodes": lambda: list(for_each_node_state(prog, prog["N_ONLINE"])),
        "memcg_nr_cache_ids": lambda: prog["memcg_nr_cache_ids"].value_(),
        "online_memcgs": lambda: len(online_ids),
        "dying_memcgs": lambda: sum(memcg["state"] == "dying" for memcg in memcgs),
        "superblocks": lambda: len(superblocks),
        "list_lrus": lambda: len(lrus),
        "slab_cache_active_objects": lambda: slab_cache_usage(find_slab_cache(prog, cache_name)).active_objs,
    }


def superblock_columns(sb: Object) -> dict[str, Callable[[], Any]]:
    def mounts() -> list[Object]:
        return [
            mount
            for mount in bounded(super_block_for_each_mount(sb))
            if 0 < mount.mnt_ns.value_() < _ERROR_POINTERS and not is_anonymous(mount.mnt_ns)
        ]

    return {
        "address": lambda: sb.value_(),
        "fstype": lambda: reversible_text(sb.s_type.name),
        "s_id": lambda: text(sb.s_id),
        "s_dev": lambda: sb.s_dev.value_(),
        "s_flags": lambda: sb.s_flags.value_(),
        "mounts": lambda: len(mounts()),
        "mountpoint": lambda: [mount_dst(mount).decode(errors="backslashreplace") for mount in mounts()],
    }


def is_anonymous(namespace: Object) -> bool:
    """Whether a mount namespace is that of a file descriptor: it has no inode number, or since v6.18 a reserved one."""
    numbers = [0]
    if "MNT_NS_ANON_INO" in namespace.prog_:
        numbers.append(namespace.prog_["MNT_NS_ANON_INO"].value_())
    try:
        return namespace.ns.inum.value_() in numbers
    except FaultError:
        return False


def memcg_columns(css: Object) -> dict[str, Callable[[], Any]]:
    memcg = container_of(css, "struct mem_cgroup", "css")
    is_online = bool(css.flags & CSS_ONLINE)
    return {
        "css_id": lambda: css.id.value_(),
        "memcg_id": lambda: memcg.id.id.value_(),
        "cache_id": lambda: memcg.kmemcg_id.value_(),
        "serial_nr": lambda: css.serial_nr.value_(),
        "path": lambda: cgroup_path(css.cgroup).decode(errors="backslashreplace"),
        "state": lambda: "online" if is_online else "dying",
    }


def list_lru_columns(lru: Object, object_bytes: int | None, ids: dict[int, int]) -> dict[str, Callable[[], Any]]:
    """The columns of a list_lru.

    :param object_bytes: of any list_lru_one (eager) or list_lru_memcg (lazy): all have one size.
    :param ids: of each pointer array that the core has.
    """
    prog = lru.prog_
    nodes = list(for_each_node_state(prog, prog["N_POSSIBLE"]))
    node_type = lru.node.type_.type
    arrays = [] if has_member(lru, "xa") else [array for array in pointer_arrays(lru) if array]

    def objects() -> int:
        if has_member(lru, "xa"):
            return len(list(bounded(xa_for_each(lru.xa.address_of_()))))
        lengths = {*ids.values()}
        own = [ids[array.value_()] if len(lengths) > 1 else min(lengths) for array in arrays]
        if -1 in own:
            raise LookupError("objects that are missing from the core")
        return sum(own)

    def items() -> int:
        if any(member.name == "nr_items" for member in node_type.members):
            return sum(counter(lru.node[node].nr_items) for node in nodes)
        lists = [cast("struct list_lru_memcg *", entry) for _, entry in bounded(xa_for_each(lru.xa.address_of_()))]
        list_lru_ones = [lru.node[node].lru for node in nodes] + [each.node[node] for each in lists for node in nodes]
        return sum(max(0, counter(list_lru_one.nr_items)) for list_lru_one in list_lru_ones)

    columns = {
        "address": lambda: lru.value_(),
        "memcg_aware": lambda: bool(lru.memcg_aware),
        "node_array_bytes": lambda: reference.allocated_bytes(lru.node),
        "root_items": lambda: sum(max(0, counter(lru.node[node].lru.nr_items)) for node in range(nr_node_ids(prog))),
        "items": items,
        "list_lru_one_objects": objects,
        "pointer_array_bytes": lambda: sum(map(reference.allocated_bytes, arrays)),
    }
    if object_bytes is not None:
        columns["list_lru_one_bytes"] = lambda: objects() * object_bytes
    return columns


def pointer_arrays(lru: Object) -> list[Object]:
    return [lru.node[node].memcg_lrus for node in range(nr_node_ids(lru.prog_))]


def array_lengths(lrus: list[Object]) -> dict[int, int]:
    """Return the ids of each pointer array that the core has; -1 for one whose objects are missing."""
    lengths = {}
    for lru in lrus:
        for array in [] if has_member(lru, "xa") else filter(None, pointer_arrays(lru)):
            try:
                lengths[array.value_()] = -1 if reference.allocated_bytes(array) else 0
                lengths[array.value_()] = reference.array_length(array)
            except UNREADABLE:
                continue
    return lengths


def object_sizes(lrus: list[Object]) -> Counter[tuple[str, int]]:
    """Count the slab caches of the first objects of each list_lru by name and size."""
    caches: Counter[tuple[str, int]] = Counter()
    for lru in lrus:
        try:
            if has_member(lru, "xa"):
                addresses = [entry.value_() for _, entry in islice(xa_for_each(lru.xa.address_of_()), MAX_OBJECTS)]
            else:
                addresses = [array.lru[0].value_() for array in pointer_arrays(lru) if array]
            for address in addresses:
                cache = find_containing_slab_cache(lru.prog_, address)
                caches[(text(cache.name), cache.size.value_()) if cache else ("none", 0)] += 1
        except UNREADABLE:
            continue
    return caches


def add_charges(
    prog: Program,
    slabs: Iterable[int],
    lrus: list[Object],
    lru_rows: list[dict[str, Any]],
    memcgs: list[Object],
    memcg_rows: list[dict[str, Any]],
) -> None:
    """Add the columns of charged objects, unless some of these cannot be read."""
    try:
        owners = charges(prog, slabs)
        by_address = {container_of(css, "struct mem_cgroup", "css").value_(): css for css in memcgs}
        lists_charged: Counter[int] = Counter()
        for lru, row_ in zip(lrus, lru_rows, strict=True):
            memcg_addresses = owners[lru.value_()]
            charged = {nearest_online(by_address[memcg]).id.value_() for memcg in memcg_addresses}
            charged.discard(memcgs[0].id.value_())
            row_["memcgs_charged"] = len(charged)
            lists_charged.update(charged)
        for row_ in memcg_rows:
            row_["lists_charged"] = lists_charged[row_["css_id"]]
    except UNREADABLE:
        for row_ in lru_rows:
            row_.pop("memcgs_charged", None)


def nearest_online(css: Object) -> Object:
    """The memcg that has the charges of a memcg: the same or an ancestor."""
    while css.parent and not css.flags & CSS_ONLINE:
        css = css.parent
    return css


def charges(prog: Program, slabs: Iterable[int]) -> dict[int, set[int]]:
    """Return the addresses of the memcgs that own objects of each list_lru, by its address."""
    owners = Owners(prog)
    heads: dict[int, list[Object]] = defaultdict(list)
    for head in slab_heads(prog, slabs):
        heads[slab_of(head).slab_cache.value_()].append(head)

    def objects(cache: int) -> Iterator[tuple[int, int]]:
        for head in heads[cache]:
            yield from owned_objects(owners, head)

    result: dict[int, set[int]] = defaultdict(set)
    inodes = []
    for address, memcg in objects(find_slab_cache(prog, "dentry").value_()):
        dentry = Object(prog, "struct dentry", address=address)
        result[dentry.d_sb.s_dentry_lru.address_].add(memcg)
        if dentry.d_inode:
            inodes.append(dentry.d_inode.value_())
    for cache, offset in inode_offsets(prog, inodes).items():
        for address, memcg in objects(cache):
            inode = Object(prog, "struct inode", address=address + offset)
            result[inode.i_sb.s_inode_lru.address_].add(memcg)
    for _, memcg in objects(prog["radix_tree_node_cachep"].value_()):
        result[prog.symbol("shadow_nodes").address].add(memcg)
    return result


def inode_offsets(prog: Program, inodes: list[int]) -> dict[int, int]:
    """Return the offset of the inode in the objects of each slab cache, by its address."""
    offsets = {}
    for inode in inodes:
        try:
            offsets.update((cache.value_(), offset) for cache, offset in inode_caches(prog, [inode]))
        except FaultError:
            continue
    return offsets


def slab_heads(prog: Program, pages: Iterable[int]) -> Iterator[Object]:
    """Yield the ``struct page *`` of each slab that has one of the pages."""
    heads = set()
    for address in pages:
        try:
            head = compound_head(virt_to_page(prog, address))
            if head.value_() not in heads and is_slab_head(head):
                heads.add(head.value_())
                yield head
        except UNREADABLE:
            continue


def owned_objects(owners: Owners, head: Object) -> Iterator[tuple[int, int]]:
    """Yield the address and the memcg of each object of a slab that is charged to a memcg."""
    slab = slab_of(head)
    start, vector, stride = owners._of_slab(page_to_virt(head).value_(), slab)
    object_bytes = slab.slab_cache.size.value_()
    for index in range(slab.objects.value_() if vector else 0):
        memcg = owners._memcg(owners.prog.read_word(vector + index * stride))
        if memcg:
            yield start + index * object_bytes, memcg


def contradictions(audited: dict[str, list[dict[str, Any]]], read: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Name what an audit says otherwise; nothing that is None in it, and nothing that is missing in `read`."""
    found = []
    for table, rows in read.items():
        if len(rows) != len(audited[table]):
            found.append(f"{table}: {len(audited[table])} rows, the reference has {len(rows)}")
            continue
        key = {"targets": "page_bytes", "memcgs": "css_id"}.get(table, "address")
        by_key = {row[key]: row for row in rows if key in row}
        for row in audited[table]:
            other = by_key.get(row[key], {}) if table != "targets" else rows[0]
            for column in row.keys() & other.keys():
                if row[column] is not None and not _agree(column, row[column], other[column]):
                    found.append(
                        f"{table}.{column} of {row[key]}: {row[column]!r}, the reference has {other[column]!r}"
                    )
    return found


def _agree(column: str, value: Any, other: Any) -> bool:
    if column == "mountpoint":
        return value in other or not other
    if column == "s_flags":
        return bool(value & 0xFFFFFFFF == other & 0xFFFFFFFF)
    return bool(value == other)
