"""States that a host of a generated fleet can be in, each as the rows of a snapshot.

What is mounted, what is charged and what is on the lists comes from the bundled cores; superblocks, memcgs and ids are
those of a fleet: `peers.md`'s published hosts lie within. Bytes are the collector's own model for the core's kernel.
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
from pipeline.warehouse.totals import totals
from tests.bench.measure import ROOT

Row = dict[str, Any]
_GIB = 2**30
_SERVICES = ("/system.slice", "/kubepods.slice", "/user.slice", "/init.scope")


@dataclass(frozen=True)
class Shape:
    """What decides the state of a host.

    - core: the bundled core whose kernel and NUMA nodes it has;
    - cache_ids: memcg_nr_cache_ids; on a lazy kernel the range that ids are from.
    """

    core: str
    cache_ids: int
    superblocks: int
    memcgs: int
    dying: int = 0
    charged: bool = True


@dataclass(frozen=True)
class State:
    """A host without its name: its columns of `targets`, and the rows of its tables.

    Superblocks have no address yet: a list_lru's is that within its superblock, or its own as int64 where it has none,
    and `superblock` is a row of the host's superblocks.
    """

    columns: Row
    tables: dict[str, pa.Table]


@cache
def core(name: str) -> dict[str, Any]:
    """Audit a bundled core and return the attempt."""
    (target,) = inventory.load([str(ROOT / "tests" / "vmcores" / name)])
    attempt = runner.run(target, 1, runner.Limits())
    if attempt["attempt"]["status"] != "ok":
        raise RuntimeError(f"{name}: {attempt['attempt']}")
    return attempt


def rows(attempt: dict[str, Any], table: str) -> list[Row]:
    """Return the rows of one table of an attempt."""
    sent = attempt["tables"][table]
    return [dict(zip(sent["columns"], row, strict=True)) for row in sent["rows"]]


def state(shape: Shape, seed: int) -> State:
    """Return the state of this shape; the same seed gives the same."""
    chance = random.Random(seed)
    attempt = core(shape.core)
    sizes = sizes_of(attempt)
    lazy = attempt["columns"]["memcg_nr_cache_ids"] is None
    mounted, lists = _mounted(attempt, shape.superblocks, chance)
    memcgs = _memcgs(shape, chance)
    online = [memcg for memcg in memcgs if memcg["cache_id"] is not None and memcg["state"] == "online"]
    made = []
    for number, source in lists:
        entries = chance.sample(online, min(source["lazy_memcgs"], len(online)))
        made.append(_list_lru(shape, sizes, lazy, source, number, entries, online))
    superblocks = [_superblock(number, row, chance) for number, row in enumerate(mounted)]
    columns = _columns(shape, attempt, made, superblocks, memcgs, lazy)
    found = {"superblocks": superblocks, "list_lrus": made, "memcgs": memcgs}
    return State(columns, {name: _arrow(name, cells) for name, cells in found.items()})


def sizes_of(attempt: dict[str, Any]) -> cost.Sizes:
    """Return the sizes of a core's kernel, told from its rows."""
    columns = attempt["columns"]
    sizes = cost.x86_64(columns["nr_node_ids"])
    if columns["arch"] == "aarch64":
        sizes = sizes._replace(kmalloc=tuple((size, size) for size, _ in sizes.kmalloc if size >= 128 and size != 192))
    return sizes._replace(list_lru_one=32) if columns["layout"] == "xarray_lock" else sizes


def _mounted(attempt: dict[str, Any], count: int, chance: random.Random) -> tuple[list[Row], list[tuple[Any, Row]]]:
    """Return superblocks of a host and its list_lrus, each with the number of its superblock.

    The kernel's own are there once; the others are drawn from those that users and containers of the core mounted.
    """
    known = rows(attempt, "superblocks")
    drawn = [row for row in known if not row["kernel_internal"]]
    mounted = (known + chance.choices(drawn, k=max(0, count - len(known))))[:count]
    by_superblock: dict[Any, list[Row]] = {}
    for row in rows(attempt, "list_lrus"):
        by_superblock.setdefault((row["superblock"], row["name"] if row["superblock"] else None), []).append(row)
    lists: list[tuple[Any, Row]] = []
    for name in ("dentry", "inode"):
        for number, row in enumerate(mounted):
            (source,) = by_superblock[row["address"], name]
            lists.append((number, {**source, "address": source["address"] - row["address"]}))
    # A symbol's address is above 2^63; until addresses are made they are int64.
    others = [(None, {**row, "address": row["address"] - 2**64}) for row in by_superblock[None, None]]
    return mounted, lists + others


def _superblock(number: int, row: Row, chance: random.Random) -> Row:
    owner = row["owner"] and f"/kubepods.slice/pod{chance.getrandbits(32):08x}"
    return {**row, "address": 0, "s_dev": number + 1, "owner": owner}


def _memcgs(shape: Shape, chance: random.Random) -> list[Row]:
    """Return the root and memcgs in a tree: services on top, pods below them, containers in those."""
    ids = sorted(chance.sample(range(shape.cache_ids - 1), shape.memcgs + shape.dying))
    dying = set(chance.sample(ids[len(_SERVICES) :], shape.dying))
    root = {"css_id": 1, "cache_id": None, "memcg_id": 1, "path": "/", "parent": None, "state": "online"}
    made = [{**root, "items": 0, "lists_with_items": 0, "lists_charged": 0, "lazy_lists": None, "serial_nr": 5}]
    for place, cache_id in enumerate(ids):
        above = made[0] if place < len(_SERVICES) else made[chance.randrange(1, 1 + max(4, place // 3))]
        name = _SERVICES[place] if place < len(_SERVICES) else f"{above['path']}/{chance.getrandbits(128):032x}"
        made.append(
            {
                "css_id": cache_id + 2,
                "cache_id": None if cache_id in dying else cache_id,
                "memcg_id": cache_id + 2,
                "path": name,
                "parent": above["css_id"],
                "state": "dying" if cache_id in dying else "online",
                "items": 0,
                "lists_with_items": 0,
                "lists_charged": 0 if shape.charged else None,
                "lazy_lists": None if cache_id in dying else 0,
                "serial_nr": 3 * cache_id + 40,
            }
        )
    return made


def _list_lru(
    shape: Shape,
    sizes: cost.Sizes,
    lazy: bool,
    source: Row,
    superblock: int | None,
    entries: list[Row],
    all_: list[Row],
) -> Row:
    """Return a row of list_lrus, and count its entries in the rows of their memcgs."""
    nodes = sizes.nodes
    charged = min(source["memcgs_charged"], len(entries))
    in_use = min(source["memcgs_with_items"], len(entries))
    ids = [memcg["memcg_id"] for memcg in entries]
    high = _total(sizes, [memcg["memcg_id"] for memcg in all_])
    row = {**source, "superblock": superblock, "memcgs_with_items": in_use, "memcgs_charged": charged}
    if not shape.charged and not lazy:
        entries, ids = all_, [memcg["memcg_id"] for memcg in all_]
        row["memcgs_charged"] = None
    for place, memcg in enumerate(entries):
        memcg["lazy_lists"] += 1
        memcg["lists_with_items"] += place < in_use
        if memcg["lists_charged"] is not None:
            memcg["lists_charged"] += place < charged
    array, objects, xa_nodes = cost.lazy_bytes(sizes, ids)
    row |= {"lazy_memcgs": len(ids), "lazy_object_bytes": objects, "lazy_xa_node_bytes": xa_nodes}
    row |= {"node_array_bytes": array, "lazy_bytes": array + objects + xa_nodes}
    if lazy:
        size = sizes.list_lru_memcg_bytes()
        eager = sum(cost.eager_bytes(sizes, nodes, cost.cache_ids_for(shape.cache_ids)))
        row |= {"nodes": nodes, "list_lru_one_objects": len(ids), "list_lru_one_size": size}
        row |= {"list_lru_one_bytes": objects, "xa_node_bytes": xa_nodes, "eager_bytes": eager}
        row |= dict.fromkeys(("lazy_low_bytes", "lazy_charged_bytes", "lazy_high_bytes"), row["lazy_bytes"])
        return {**row, "lazy_empty_bytes": (len(ids) - in_use) * size}
    array, arrays, objects = cost.eager_bytes(sizes, nodes, shape.cache_ids)
    row |= {"nodes": nodes, "cache_ids": shape.cache_ids, "list_lru_one_objects": nodes * shape.cache_ids}
    row |= {"list_lru_one_size": sizes.list_lru_one_bytes(), "list_lru_one_bytes": objects}
    row |= {"pointer_array_bytes": arrays, "eager_bytes": array + arrays + objects, "lazy_high_bytes": high}
    row["lazy_low_bytes"] = _total(sizes, ids[:in_use])
    row["lazy_charged_bytes"] = _total(sizes, ids[:charged]) if shape.charged else None
    return row


def _total(sizes: cost.Sizes, ids: Sequence[int]) -> int:
    return sum(cost.lazy_bytes(sizes, ids))


def _columns(
    shape: Shape, attempt: dict[str, Any], lists: list[Row], superblocks: list[Row], memcgs: list[Row], lazy: bool
) -> Row:
    """Return what a collector says of the host."""
    objects = sum(row["list_lru_one_objects"] for row in lists)
    held = sum(row["list_lru_one_bytes"] + row["pointer_array_bytes"] for row in lists)
    ids = [memcg["cache_id"] for memcg in memcgs if memcg["cache_id"] is not None]
    return {
        **attempt["columns"],
        "memory_bytes": next(size * _GIB for size in (32, 64, 128, 256, 512, 1024, 2048) if size * _GIB > 3 * held),
        "memcg_nr_cache_ids": None if lazy else shape.cache_ids,
        "online_memcgs": shape.memcgs,
        "dying_memcgs": shape.dying,
        "max_online_id": max(ids),
        "superblocks": len(superblocks),
        "list_lrus": len(lists),
        "slab_cache_active_objects": objects + 20_000,
        "slab_cache_bytes": (objects + 30_000) * (lists[0]["list_lru_one_size"] or 0),
        "list_lru_one_in_cache": objects,
        "lazy_basis": None if lazy else "charged" if shape.charged else "online",
        **{
            name: cells[0]
            for name, cells in totals({"targets": {"status": ["ok"]}, "list_lrus": _cells(lists)}).items()
        },
    }


def _cells(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _arrow(name: str, cells: Sequence[Row]) -> pa.Table:
    """Return rows as a table without run_id and target, null where they say nothing; places are int64."""
    columns = [column for column in schema.tables()[name].columns if column.name not in ("run_id", "target")]
    arrays: dict[str, pa.Array] = {}
    for column in columns:
        values = [row.get(column.name) for row in cells]
        arrays[column.name] = pa.array(values, pa.int64()) if column.type == "uint64" else column.array(values)
    return pa.table(arrays)


def shapes(superblocks: int) -> Iterator[tuple[list[Shape], list[Shape]]]:
    """Yield what kinds of hosts a fleet has: the shapes that one grows through, and those after an upgrade.

    :param superblocks: their mean over the kinds.
    """
    series = [382]
    while series[-1] < 24_574:
        series.append(cost.next_cache_ids(series[-1]))
    eager = ("bytedance", "deb510-n2", "deb510-n4", "deb510-n1", "deb510-n2", "deb510-arm64")
    after = ("deb612-n4", "deb61-n2", "deb612-n4", "deb61-n2", "deb7-n2", "deb7-n2")
    for kind, share in enumerate((0.2, 0.5, 0.8, 1.0, 1.3, 2.2) * 2):
        base = max(8, round(share * superblocks))
        growing = [
            Shape(
                eager[kind % 5 if kind < 6 else kind % 6],
                cache_ids,
                round(base * (0.94 + 0.04 * step)),
                min(60 + 30 * step + 12 * kind, cache_ids // 2),
                dying=5 * step,
                charged=kind % 6 != 1,
            )
            for step, cache_ids in enumerate(series[kind % 4 : kind % 4 + 4])
        ]
        upgraded = [Shape(after[kind % 6], 700, round(base * factor), 60 + 12 * kind, 3) for factor in (0.96, 1.04)]
        yield growing, upgraded
