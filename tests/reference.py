"""Reference walk over a kernel's list_lrus, slow and simple: with DWARF and drgn's helpers, one object at a time.

The lab runs it on every full core and writes the result to truth/reference.json beside the small core; the collector's
tests compare their audit with it. Nothing here may come from pipeline/. The walk has no bulk reads, counts the items
instead of trusting nr_items, and counts all objects instead of a sample.

    python -m tests.reference VMCORE VMLINUX > reference.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from drgn import Object, Program, cast, container_of, sizeof
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.fs import super_block_for_each_mount
from drgn.helpers.linux.list import list_count_nodes, list_for_each_entry
from drgn.helpers.linux.mm import compound_order, find_vmap_area, virt_to_page
from drgn.helpers.linux.nodemask import for_each_node, for_each_node_state
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import find_containing_slab_cache, find_slab_cache, slab_cache_usage
from drgn.helpers.linux.xarray import xa_for_each

CSS_ONLINE = 1 << 1
CACHE_NAMES = ("kmalloc-32", "kmalloc-64", "kmalloc-96", "kmalloc-128", "kmalloc-192", "radix_tree_node", "dentry")


def read(prog: Program) -> dict[str, Any]:
    """Read all figures that the tests compare, as JSON values; sizes are in bytes, addresses are integers."""
    superblocks = list(list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"))
    tasks = [task for task in for_each_task(prog) if task.nsproxy]
    return {
        "release": prog["init_uts_ns"].name.release.string_().decode(),
        "memcg_nr_cache_ids": prog["memcg_nr_cache_ids"].value_() if "memcg_nr_cache_ids" in prog else None,
        "nr_node_ids": nr_node_ids(prog),
        "possible_nodes": list(for_each_node_state(prog, prog["N_POSSIBLE"])),
        "online_nodes": list(for_each_node(prog)),
        "sizeof": {name: sizeof(prog.type(f"struct {name}")) for name in ("list_lru", "list_lru_node", "list_lru_one")},
        "superblocks": [superblock(sb, tasks) for sb in superblocks],
        "list_lrus": [list_lru(lru, owner) for lru, owner in list_lrus(prog, superblocks)],
        "memcgs": list(memcgs(prog)),
        "slab_usage": {name: usage(prog, name) for name in CACHE_NAMES},
    }


def nr_node_ids(prog: Program) -> int:
    """One more than the highest possible node; a macro, 1, without CONFIG_NUMA."""
    return int(prog["nr_node_ids"]) if "nr_node_ids" in prog else 1


def superblock(sb: Object, tasks: list[Object]) -> dict[str, Any]:
    """The row of a superblock. If the first task has not mounted it, its users are the cgroups of those that have."""
    prog = sb.prog_
    namespaces = {mount.mnt_ns.value_() for mount in super_block_for_each_mount(sb)}
    if prog["init_task"].nsproxy.mnt_ns.value_() in namespaces:
        namespaces = set()
    users = [task for task in tasks if task.nsproxy.mnt_ns.value_() in namespaces]
    return {
        "address": sb.value_(),
        "fstype": text(sb.s_type.name),
        "s_id": text(sb.s_id),
        "s_dev": sb.s_dev.value_(),
        "s_flags": sb.s_flags.value_() & 0xFFFFFFFF,
        "users": sorted(
            {
                cgroup_path(task.cgroups.subsys[prog["memory_cgrp_id"]].cgroup).decode(errors="backslashreplace")
                for task in users
            }
        ),
    }


def list_lrus(prog: Program, superblocks: list[Object]) -> Iterator[tuple[Object, dict[str, Any]]]:
    """Yield every list_lru with its owner: the two of each superblock, then the others on the kernel's own list."""
    superblock_lrus = set()
    for sb in superblocks:
        for name in ("dentry", "inode"):
            lru = sb.member_(f"s_{name}_lru").address_of_()
            superblock_lrus.add(lru.value_())
            yield lru, {"name": name, "superblock": sb.value_()}
    all_lrus = prog["memcg_list_lrus" if "memcg_list_lrus" in prog else "list_lrus"]
    for lru in list_for_each_entry("struct list_lru", all_lrus.address_of_(), "list"):
        if lru.value_() not in superblock_lrus:
            yield lru, {"name": prog.symbol(lru.value_()).name, "superblock": None}


def list_lru(lru: Object, owner: dict[str, Any]) -> dict[str, Any]:
    prog = lru.prog_
    nodes = list(for_each_node_state(prog, prog["N_POSSIBLE"]))
    row: dict[str, Any] = {"address": lru.value_(), **owner, "memcg_aware": bool(lru.memcg_aware)}
    row["node_array_bytes"] = allocated_bytes(lru.node)
    row["root_items"] = sum(list_count_nodes(lru.node[node].lru.list.address_of_()) for node in nodes)
    walk = lazy_lists if has_member(lru, "xa") else eager_lists
    lists = list(walk(lru, nodes, row))
    items: Counter[int] = Counter()
    for cache_id, list_lru_one in lists:
        items[cache_id] += list_count_nodes(list_lru_one.list.address_of_())
    row["memcg_items"] = {str(cache_id): count for cache_id, count in sorted(items.items()) if count}
    row["items"] = row["root_items"] + sum(items.values())
    row["nr_items"] = nr_items(lru, nodes, lists)
    return row


def eager_lists(lru: Object, nodes: list[int], row: dict[str, Any]) -> Iterator[tuple[int, Object]]:
    """Yield the lists of a kernel up to v5.17 by cache id: each node has an array of pointers to list_lru_one."""
    prog = lru.prog_
    arrays: list[int] = []
    objects: list[int] = []
    for node in nodes:
        array = lru.node[node].memcg_lrus
        if not array:
            continue
        arrays.append(allocated_bytes(array))
        for cache_id in range(array_length(array)):
            list_lru_one = array.lru[cache_id]
            objects.append(list_lru_one.value_())
            yield cache_id, list_lru_one
    assert len(set(objects)) == len(objects), "two slots point to one list_lru_one"
    row["arrays_bytes"] = arrays
    row["objects"] = len(objects)
    row["object_caches"] = caches(prog, objects)
    row["xa_nodes"] = 0


def array_length(array: Object) -> int:
    """The number of list_lru_ones of a node's array: memcg_nr_cache_ids, or the next one if a doubling has passed it.

    The array then has room for them, and all the new ones are empty lists.
    """
    prog = array.prog_
    ids = prog["memcg_nr_cache_ids"].value_()
    doubled = 2 * (ids + 1)
    if allocated_bytes(array) < sizeof(prog.type("struct list_lru_memcg")) + 8 * doubled:
        return ids
    new = [array.lru[cache_id] for cache_id in range(ids, doubled)]
    return doubled if all(lists.list.next == lists.list.address_of_() and lists.nr_items == 0 for lists in new) else ids


def lazy_lists(lru: Object, nodes: list[int], row: dict[str, Any]) -> Iterator[tuple[int, Object]]:
    """Yield the lists of a kernel since v5.18 by cache id: an xarray of list_lru_memcg, each with a list per node."""
    objects: list[int] = []
    for cache_id, entry in xa_for_each(lru.xa.address_of_()):
        memcg_lists = cast("struct list_lru_memcg *", entry)
        objects.append(memcg_lists.value_())
        for node in nodes:
            yield cache_id, memcg_lists.node[node]
    xa_nodes = list(xarray_nodes(lru.xa.xa_head))
    row["arrays_bytes"] = []
    row["objects"] = len(objects)
    row["object_caches"] = caches(lru.prog_, objects)
    row["xa_nodes"] = len(xa_nodes)
    row["xa_node_caches"] = caches(lru.prog_, xa_nodes)


def xarray_nodes(entry: Object) -> Iterator[int]:
    """Yield the addresses of the xa_nodes below an entry of an xarray.

    The low bits of a node's entry are 10; small values with these bits are not nodes.
    """
    if entry.value_() & 3 == 2 and entry.value_() > 4096:
        node = Object(entry.prog_, "struct xa_node *", entry.value_() - 2)
        yield node.value_()
        for slot in node.slots:
            yield from xarray_nodes(slot)


def nr_items(lru: Object, nodes: list[int], lists: list[tuple[int, Object]]) -> int:
    """The kernel's own count of items: per node if list_lru_node has nr_items, else the sum over its lists."""
    node_type = lru.node.type_.type
    if any(member.name == "nr_items" for member in node_type.members):
        return sum(counter(lru.node[node].nr_items) for node in nodes)
    list_lru_ones = [lru.node[node].lru for node in nodes] + [list_lru_one for _, list_lru_one in lists]
    return sum(max(0, counter(list_lru_one.nr_items)) for list_lru_one in list_lru_ones)


def counter(value: Object) -> int:
    """The value of a long, or since v6.13 of an atomic_long_t."""
    return int(value if value.type_.primitive else value.counter)


def memcgs(prog: Program) -> Iterator[dict[str, Any]]:
    for css in css_for_each_descendant_pre(prog["root_mem_cgroup"].css.address_of_()):
        memcg = container_of(css, "struct mem_cgroup", "css")
        yield {
            "address": memcg.value_(),
            "css_id": css.id.value_(),
            "cache_id": memcg.kmemcg_id.value_(),
            "memcg_id": memcg.id.id.value_(),
            "path": cgroup_path(css.cgroup).decode(errors="backslashreplace"),
            "online": bool(css.flags & CSS_ONLINE),
        }


def caches(prog: Program, addresses: list[int]) -> dict[str, dict[str, int]]:
    """The number of objects in each slab cache, and the cache's slot size."""
    objects_by_page = Counter(address // prog["PAGE_SIZE"].value_() for address in addresses)
    counts: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    for page, objects in objects_by_page.items():
        cache = find_containing_slab_cache(prog, page * prog["PAGE_SIZE"].value_())
        name = text(cache.name) if cache else "none"
        counts[name] += objects
        sizes[name] = cache.size.value_() if cache else 0
    return {name: {"objects": counts[name], "size": sizes[name]} for name in sorted(counts)}


def allocated_bytes(pointer: Object) -> int:
    """Bytes that the allocation at a pointer takes: a slab slot, a compound page, or vmalloc's pages."""
    prog = pointer.prog_
    area = find_vmap_area(prog, pointer)
    if area:
        return int(area.vm.nr_pages) * int(prog["PAGE_SIZE"])
    cache = find_containing_slab_cache(prog, pointer)
    if cache:
        return int(cache.size)
    return int(prog["PAGE_SIZE"]) << int(compound_order(virt_to_page(pointer)))


def usage(prog: Program, name: str) -> dict[str, int] | None:
    """drgn's counts of a slab cache; None if the cache does not exist or drgn 0.3.0 cannot count it.

    drgn 0.3.0 follows the NULL pointer that a cache has for a possible node without memory.
    """
    cache = find_slab_cache(prog, name)
    if not cache or (has_member(cache, "node") and not all(cache.node[: nr_node_ids(prog)])):
        return None
    counts = slab_cache_usage(cache)
    return {"slabs": counts.num_slabs, "objects": counts.num_objs, "active_objects": counts.active_objs}


def has_member(value: Object, name: str) -> bool:
    try:
        value.member_(name)
    except LookupError:
        return False
    return True


def text(value: Object) -> str:
    return str(value.string_().decode(errors="backslashreplace"))


def dumps(report: dict[str, Any]) -> str:
    """The result of read() as JSON, one row per line."""

    def rows(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in value) + "\n]"
        return json.dumps(value)

    return "{\n" + ",\n".join(f'"{key}": {rows(value)}' for key, value in report.items()) + "\n}\n"


def main() -> None:
    core, vmlinux = sys.argv[1:]
    prog = Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    sys.stdout.write(dumps(read(prog)))


if __name__ == "__main__":
    main()
