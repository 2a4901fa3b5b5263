"""States of the hosts of a generated fleet, each as the rows of a snapshot.

Mounts, charges and items come from the bundled cores. The numbers of superblocks, memcgs and ids are those of published
fleets (docs/benchmarks.md). Bytes follow from the collector's model for the core's kernel.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from pipeline import inventory
from pipeline.collector.model import cost
from pipeline.fanout import runner
from pipeline.warehouse import schema
from pipeline.warehouse.totals import SUPERBLOCK_TOTALS, TARGET_TOTALS, target_totals
from tests.bench.measure import ROOT

Row = dict[str, Any]
_GIB = 2**30
_SERVICES = ("/system.slice", "/kubepods.slice", "/user.slice", "/init.scope")


@dataclass(frozen=True)
class Shape:
    """The parameters of a host's state.

    - core: the bundled core that it has the kernel and the NUMA nodes of;
    - cache_ids: memcg_nr_cache_ids; on a lazy kernel the upper bound of ids;
    - memcgs: online memcgs without the root;
    - has_charges: whether the collector read the charges of objects.
    """

    core: str
    cache_ids: int
    superblocks: int
    memcgs: int
    dying_memcgs: int = 0
    has_charges: bool = True


@dataclass(frozen=True)
class State:
    """The rows of a host without its name: its columns of `targets`, and its other tables.

    Superblocks have no address yet. `superblock` of a list_lru is the number of a row of the host's superblocks, and
    its address is an offset in that superblock. A list_lru without a superblock has its own address, as int64.
    """

    columns: Row
    tables: dict[str, pa.Table]


@cache
def core(name: str) -> dict[str, Any]:
    """Audit a bundled core and return the result of the attempt."""
    (target,) = inventory.load([str(ROOT / "tests" / "vmcores" / name)])
    attempt = runner.run(target, 1, runner.Limits())
    if attempt["attempt"]["status"] != "ok":
        raise RuntimeError(f"{name}: {attempt['attempt']}")
    return attempt


def rows(attempt: dict[str, Any], table: str) -> list[Row]:
    """Return the rows of one table of an attempt."""
    content = attempt["tables"][table]
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def state(shape: Shape, seed: int) -> State:
    """Return a state of this shape, which the seed determines."""
    chance = random.Random(seed)
    attempt = core(shape.core)
    sizes = kernel_sizes(attempt)
    is_lazy = attempt["columns"]["memcg_nr_cache_ids"] is None
    mounts, lists = _mounts(attempt, shape.superblocks, chance)
    memcgs = _memcgs(shape, chance)
    online = [memcg for memcg in memcgs if memcg["cache_id"] is not None and memcg["state"] == "online"]
    list_lrus = []
    for number, source in lists:
        entries = chance.sample(online, min(source["lazy_memcgs"], len(online)))
        list_lrus.append(_list_lru(shape, sizes, is_lazy, source, number, entries, online))
    superblocks = [_superblock(number, row, chance) for number, row in enumerate(mounts)]
    for row in list_lrus:
        if row["superblock"] is not None:
            _add_to_sums(superblocks[row["superblock"]], row)
    columns = _columns(shape, attempt, list_lrus, superblocks, memcgs, is_lazy)
    dying_pages = _dying_memcg_pages(memcgs, columns) if shape.has_charges else []
    tables = {
        "superblocks": superblocks,
        "list_lrus": list_lrus,
        "memcgs": memcgs,
        "memcg_memory": _memcg_memory(attempt, columns, dying_pages),
        "dying_memcg_pages": dying_pages,
    }
    return State(columns, {name: _arrow(name, table_rows) for name, table_rows in tables.items()})


def kernel_sizes(attempt: dict[str, Any]) -> cost.Sizes:
    """Return the object sizes of a core's kernel, derived from the columns of its target."""
    columns = attempt["columns"]
    sizes = cost.x86_64(columns["nr_node_ids"])
    if columns["arch"] == "aarch64":
        sizes = sizes._replace(kmalloc=tuple((size, size) for size, _ in sizes.kmalloc if size >= 128 and size != 192))
    return sizes._replace(list_lru_one=32) if columns["layout"] == "xarray_lock" else sizes


def _mounts(attempt: dict[str, Any], count: int, chance: random.Random) -> tuple[list[Row], list[tuple[Any, Row]]]:
    """Return `count` superblocks of a host, and its list_lrus, each with the number of its superblock.

    The superblocks of the core come first, then random copies of those that are not internal to the kernel.
    """
    core_superblocks = rows(attempt, "superblocks")
    mountable = [row for row in core_superblocks if not row["kernel_internal"]]
    copies = chance.choices(mountable, k=max(0, count - len(core_superblocks)))
    superblocks = (core_superblocks + copies)[:count]
    by_superblock: dict[Any, list[Row]] = {}
    for row in rows(attempt, "list_lrus"):
        by_superblock.setdefault((row["superblock"], row["name"] if row["superblock"] else None), []).append(row)
    lists: list[tuple[Any, Row]] = []
    for name in ("dentry", "inode"):
        for number, row in enumerate(superblocks):
            (source,) = by_superblock[row["address"], name]
            lists.append((number, {**source, "address": source["address"] - row["address"]}))
    # Addresses are int64 until `fleet` assigns those of superblocks; the address of a symbol is above 2^63.
    global_lists = [(None, {**row, "address": row["address"] - 2**64}) for row in by_superblock[None, None]]
    return superblocks, lists + global_lists


def _superblock(number: int, row: Row, chance: random.Random) -> Row:
    owner = row["owner"] and f"/kubepods.slice/pod{chance.getrandbits(32):08x}"
    return {**row, "address": 0, "s_dev": number + 1, "owner": owner} | dict.fromkeys(SUPERBLOCK_TOTALS, 0)


def _add_to_sums(superblock: Row, list_lru: Row) -> None:
    superblock["list_lrus"] += 1
    superblock["lazy_bytes"] += list_lru["lazy_bytes"]
    for name in ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes"):
        superblock["list_lru_bytes"] += list_lru[name]


def _memcgs(shape: Shape, chance: random.Random) -> list[Row]:
    """Return the root memcg and a tree below it: services, pods below them, containers below those."""
    ids = sorted(chance.sample(range(shape.cache_ids - 1), shape.memcgs + shape.dying_memcgs))
    dying_ids = set(chance.sample(ids[len(_SERVICES) :], shape.dying_memcgs))
    root = {"css_id": 1, "cache_id": None, "memcg_id": 1, "path": "/", "parent": None, "state": "online"}
    memcgs = [{**root, "items": 0, "lists_with_items": 0, "lists_charged": 0, "lazy_lists": None, "serial_nr": 5}]
    for index, cache_id in enumerate(ids):
        is_service = index < len(_SERVICES)
        parent = memcgs[0] if is_service else memcgs[chance.randrange(1, 1 + max(4, index // 3))]
        path = _SERVICES[index] if is_service else f"{parent['path']}/{chance.getrandbits(128):032x}"
        memcgs.append(
            {
                "css_id": cache_id + 2,
                "cache_id": None if cache_id in dying_ids else cache_id,
                "memcg_id": cache_id + 2,
                "path": path,
                "parent": parent["css_id"],
                "state": "dying" if cache_id in dying_ids else "online",
                "items": 0,
                "lists_with_items": 0,
                "lists_charged": 0 if shape.has_charges else None,
                "lazy_lists": None if cache_id in dying_ids else 0,
                "serial_nr": 3 * cache_id + 40,
            }
        )
    return memcgs


def _list_lru(
    shape: Shape,
    sizes: cost.Sizes,
    is_lazy: bool,
    source: Row,
    superblock: int | None,
    entries: list[Row],
    online: list[Row],
) -> Row:
    """Return a row of list_lrus, and count its entries in the rows of their memcgs.

    :param source: the row of a list_lru of the core.
    :param superblock: the number of its superblock.
    :param entries: the memcgs that have a list on it on a lazy kernel.
    :param online: all online memcgs.
    """
    nodes = sizes.nodes
    charged_count = min(source["memcgs_charged"], len(entries))
    with_items_count = min(source["memcgs_with_items"], len(entries))
    ids = [memcg["memcg_id"] for memcg in entries]
    online_ids = [memcg["memcg_id"] for memcg in online]
    row = {**source, "superblock": superblock}
    row |= {"memcgs_with_items": with_items_count, "memcgs_charged": charged_count}
    if not shape.has_charges and not is_lazy:
        entries, ids = online, online_ids
        row["memcgs_charged"] = None
    for index, memcg in enumerate(entries):
        memcg["lazy_lists"] += 1
        memcg["lists_with_items"] += index < with_items_count
        if memcg["lists_charged"] is not None:
            memcg["lists_charged"] += index < charged_count
    array_bytes, object_bytes, xa_node_bytes = cost.lazy_bytes(sizes, ids)
    row |= {"lazy_memcgs": len(ids), "lazy_object_bytes": object_bytes, "lazy_xa_node_bytes": xa_node_bytes}
    row |= {"node_array_bytes": array_bytes, "lazy_bytes": array_bytes + object_bytes + xa_node_bytes}
    if is_lazy:
        size = sizes.list_lru_memcg_bytes()
        eager_bytes = sum(cost.eager_bytes(sizes, nodes, cost.cache_ids_for(shape.cache_ids)))
        row |= {"nodes": nodes, "list_lru_one_objects": len(ids), "list_lru_one_size": size}
        row |= {"list_lru_one_bytes": object_bytes, "xa_node_bytes": xa_node_bytes, "eager_bytes": eager_bytes}
        row |= dict.fromkeys(("lazy_low_bytes", "lazy_charged_bytes", "lazy_high_bytes"), row["lazy_bytes"])
        return {**row, "lazy_empty_bytes": (len(ids) - with_items_count) * size}
    array_bytes, pointer_array_bytes, object_bytes = cost.eager_bytes(sizes, nodes, shape.cache_ids)
    row |= {"nodes": nodes, "cache_ids": shape.cache_ids, "list_lru_one_objects": nodes * shape.cache_ids}
    row |= {"list_lru_one_size": sizes.list_lru_one_bytes(), "list_lru_one_bytes": object_bytes}
    row |= {"pointer_array_bytes": pointer_array_bytes, "eager_bytes": array_bytes + pointer_array_bytes + object_bytes}
    row["lazy_high_bytes"] = _total(sizes, online_ids)
    row["lazy_low_bytes"] = _total(sizes, ids[:with_items_count])
    row["lazy_charged_bytes"] = _total(sizes, ids[:charged_count]) if shape.has_charges else None
    return row


def _dying_memcg_pages(memcgs: list[Row], columns: Row) -> list[Row]:
    """Return a file of one page for each dying memcg: what keeps those of the cores."""
    by_css_id = {memcg["css_id"]: memcg for memcg in memcgs}
    files = []
    for number, memcg in enumerate(memcg for memcg in memcgs if memcg["state"] == "dying"):
        parent = by_css_id[memcg["parent"]]
        while parent["state"] == "dying":
            parent = by_css_id[parent["parent"]]
        row = {"parent": parent["css_id"], "kind": "shmem", "inode": 100 + number, "deleted": False}
        row |= {"path": f"/run/state-{number}", "files": 1, "memcgs": 1, "pages": 1, "bytes": columns["page_bytes"]}
        files.append(row)
    return files


def _memcg_memory(attempt: dict[str, Any], columns: Row, dying_pages: list[Row]) -> list[Row]:
    """Return the rows of the core, with the list_lrus and the page cache of dying memcgs of the host."""
    upgraded_bytes = columns["lazy_bytes"] if columns["target_kernel"] else None
    list_lrus = {"held_bytes": columns["list_lru_bytes"], "online_bytes": columns["lazy_bytes"], "dying_bytes": 0}
    list_lrus |= {"left_bytes": columns["list_lru_bytes"] - columns["lazy_bytes"], "upgraded_bytes": upgraded_bytes}
    page_cache_bytes = sum(row["bytes"] for row in dying_pages)
    parts = {
        "list_lru": list_lrus,
        "dying_page_cache": {"held_bytes": page_cache_bytes, "dying_bytes": page_cache_bytes},
    }
    return [row | parts.get(row["part"], {}) for row in rows(attempt, "memcg_memory")]


def _total(sizes: cost.Sizes, ids: Sequence[int]) -> int:
    return sum(cost.lazy_bytes(sizes, ids))


def _columns(
    shape: Shape, attempt: dict[str, Any], lists: list[Row], superblocks: list[Row], memcgs: list[Row], is_lazy: bool
) -> Row:
    """Return the columns that a collector reports for the host."""
    objects = sum(row["list_lru_one_objects"] for row in lists)
    eager_bytes = sum(row["list_lru_one_bytes"] + row["pointer_array_bytes"] for row in lists)
    memory_bytes = next(gib * _GIB for gib in (32, 64, 128, 256, 512, 1024, 2048) if gib * _GIB > 3 * eager_bytes)
    ids = [memcg["cache_id"] for memcg in memcgs if memcg["cache_id"] is not None]
    return {
        **attempt["columns"],
        "memory_bytes": memory_bytes,
        "memcg_nr_cache_ids": None if is_lazy else shape.cache_ids,
        "online_memcgs": shape.memcgs,
        "dying_memcgs": shape.dying_memcgs,
        "max_online_id": max(ids),
        "superblocks": len(superblocks),
        "list_lrus": len(lists),
        "slab_cache_active_objects": objects + 20_000,
        "slab_cache_bytes": (objects + 30_000) * (lists[0]["list_lru_one_size"] or 0),
        "list_lru_one_in_cache": objects,
        "slab_unreclaimable_bytes": (attempt["columns"]["slab_unreclaimable_bytes"] or 0) + eager_bytes,
        "lazy_basis": None if is_lazy else "charged" if shape.has_charges else "online",
        **_totals(lists),
    }


def _totals(lists: Sequence[Row]) -> Row:
    nulls = {name: pa.nulls(1, pa.int64()) for name in TARGET_TOTALS}
    target = pa.table({"target": ["host"], "status": ["ok"], **nulls})
    list_lrus = _arrow("list_lrus", lists).append_column("target", pa.repeat("host", len(lists)))
    (row,) = target_totals(target, list_lrus).select(TARGET_TOTALS).to_pylist()
    return row


def _arrow(name: str, table_rows: Sequence[Row]) -> pa.Table:
    """Return rows as an Arrow table without run_id and target. A missing value is null, and an address is int64."""
    columns = [column for column in schema.tables()[name].columns if column.name not in ("run_id", "target")]
    arrays: dict[str, pa.Array] = {}
    for column in columns:
        values = [row.get(column.name) for row in table_rows]
        arrays[column.name] = pa.array(values, pa.int64()) if column.type == "uint64" else column.array(values)
    return pa.table(arrays)


def shapes(superblocks: int) -> Iterator[tuple[list[Shape], list[Shape]]]:
    """Yield the kinds of hosts: the shapes that a host grows through, and those after an upgrade to a lazy kernel.

    :param superblocks: the mean number of superblocks over the kinds.
    """
    cache_ids_steps = [382]
    while cache_ids_steps[-1] < 24_574:
        cache_ids_steps.append(cost.next_cache_ids(cache_ids_steps[-1]))
    eager_cores = ("bytedance", "deb510-n2", "deb510-n4", "deb510-n1", "deb510-n2", "deb510-arm64")
    lazy_cores = ("deb612-n4", "deb61-n2", "deb612-n4", "deb61-n2", "deb7-n2", "deb7-n2")
    for kind, share in enumerate((0.2, 0.5, 0.8, 1.0, 1.3, 2.2) * 2):
        base = max(8, round(share * superblocks))
        growth = [
            Shape(
                eager_cores[kind % 5 if kind < 6 else kind % 6],
                cache_ids,
                round(base * (0.94 + 0.04 * step)),
                min(60 + 30 * step + 12 * kind, cache_ids // 2),
                dying_memcgs=5 * step,
                has_charges=kind % 6 != 1,
            )
            for step, cache_ids in enumerate(cache_ids_steps[kind % 4 : kind % 4 + 4])
        ]
        upgrade = [Shape(lazy_cores[kind % 6], 700, round(base * factor), 60 + 12 * kind, 3) for factor in (0.96, 1.04)]
        yield growth, upgrade
