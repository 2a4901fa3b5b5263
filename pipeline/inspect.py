"""One kernel on one screen: the analysis of the commit message of 5abc1e37afa0, from one target's outcome."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.collector import cost
from pipeline.text import human_bytes, printable

_SUMMED = (
    "list_lru_one_objects",
    "list_lru_one_bytes",
    "pointer_array_bytes",
    "node_array_bytes",
    "xa_node_bytes",
    "items",
    "lazy_low_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
    "lazy_object_bytes",
    "lazy_xa_node_bytes",
    "lazy_empty_bytes",
)


def host_waste(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of ``targets`` and of the view ``host_waste`` for a target, and the sums behind them.

    :param outcome: of ``pipeline.fanout``; for one that is not good just its ``targets`` row.
    """
    row = {"target": outcome["target"], **outcome["row"]}
    row |= {name: _iso(row[name]) for name in ("started_at", "captured_at", "booted_at") if row.get(name)}
    if row["status"] != "ok":
        return row
    list_lrus = outcome["tables"]["list_lrus"]
    columns = list_lrus["columns"]
    sums = {name: sum(values[columns.index(name)] or 0 for values in list_lrus["rows"]) for name in _SUMMED}
    holds = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
    list_lru_bytes = sum(sums[name] for name in holds)
    formula = None
    if row["memcg_nr_cache_ids"] is not None:
        formula = cost.formula_bytes(row["superblocks"], len(row["possible_nodes"]), row["memcg_nr_cache_ids"])
    memcgs = outcome["tables"]["memcgs"]
    owned = sum(values[memcgs["columns"].index("cache_id")] is not None for values in memcgs["rows"])
    wasted = list_lru_bytes - sums["lazy_bytes"]
    return {
        **row,
        "list_lru_bytes": list_lru_bytes,
        "formula_bytes": formula,
        "dead_ids": None if row["memcg_nr_cache_ids"] is None else row["memcg_nr_cache_ids"] - owned,
        **sums,
        "wasted_bytes": wasted,
        "wasted_pct_of_memory": round(100 * wasted / row["memory_bytes"], 2),
    }


def _iso(microseconds: int) -> str:
    """Return a time since the epoch as `report` and `sql` write it."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat().replace("+00:00", "Z")


def text(figures: Mapping[str, Any]) -> str:
    """Return the screen for the figures of a target that is good."""
    f = figures
    lines = [
        f"{printable(f['host'])}  {printable(f['kernel_release'])}  {printable(f['arch'])}  "
        f"{human_bytes(f['memory_bytes'])}" + (f"  {f['captured_at']}" if f["captured_at"] else ""),
        f"layout {f['layout']}, types from {f['types_source']}, {f['consistency']}",
        "",
    ]
    if f["status"] == "unsupported":
        return "\n".join([*lines, f"unsupported: {printable(f['error'] or '')}"]) + "\n"
    lines += _eager(f) if f["lazy_target"] is not None else _lazy(f)
    if f["notes"]:
        lines += ["", f"note: {printable(f['notes'])}"]
    return "\n".join(lines) + "\n"


def _eager(f: Mapping[str, Any]) -> list[str]:
    ids, nodes, lists = f["memcg_nr_cache_ids"], len(f["possible_nodes"]), f["list_lrus"]
    return [
        *_machine(f),
        _line("memcg_nr_cache_ids", ids, f"{f['dead_ids']:,} of them belong to no online memcg"),
        "",
        _line("a list", nodes * ids * cost.FORMULA_OBJECT_BYTES, f"{nodes} nodes * {ids} ids * 32 bytes"),
        _line(
            "by the formula",
            f["formula_bytes"],
            f"2 * {f['superblocks']} superblocks; the commit message's own",
        ),
        _line("as allocated", f["list_lru_bytes"], f"{lists} list_lrus, {human_bytes(f['list_lru_bytes'])}"),
        *_parts(f),
        "",
        _line(
            "lazy kernel",
            f["lazy_bytes"],
            f"at most, {human_bytes(f['lazy_bytes'])}: every online memcg, every list",
        ),
        _line(
            "",
            f["lazy_low_bytes"],
            f"at least, {human_bytes(f['lazy_low_bytes'])}: memcgs with items on a list now",
        ),
        _line(
            "wasted",
            f["wasted_bytes"],
            f"at least, {human_bytes(f['wasted_bytes'])}, {f['wasted_pct_of_memory']:.2f} % of memory",
        ),
        *_cache(f),
    ]


def _lazy(f: Mapping[str, Any]) -> list[str]:
    return [
        *_machine(f),
        "",
        "This kernel allocates list_lru_one only when needed (5abc1e37afa0, v5.18): nothing to save.",
        _line(
            "as allocated",
            f["list_lru_bytes"],
            f"{f['list_lrus']} list_lrus, {human_bytes(f['list_lru_bytes'])}",
        ),
        *_parts(f),
        _line("without items", f["lazy_empty_bytes"], "of list_lru_memcg, kept until their memcg goes offline"),
        *_cache(f),
    ]


def _machine(f: Mapping[str, Any]) -> list[str]:
    return [
        _line("superblocks", f["superblocks"]),
        _line("NUMA nodes", len(f["possible_nodes"]), f"possible; {len(f['online_nodes'])} online"),
        _line("online memcgs", f["online_memcgs"], f"and {f['dying_memcgs']} dying"),
    ]


def _parts(f: Mapping[str, Any]) -> list[str]:
    size = f["list_lru_one_bytes"] // f["list_lru_one_objects"] if f["list_lru_one_objects"] else 0
    what = "list_lru_one" if f["layout"].startswith("array") else "list_lru_memcg"
    what = "list_lru_per_memcg" if "mlrus" in f["layout"] else what
    parts = (
        (what, f["list_lru_one_bytes"], f"{f['list_lru_one_objects']:,} objects of {size} bytes"),
        ("pointer arrays", f["pointer_array_bytes"], ""),
        ("node arrays", f["node_array_bytes"], ""),
        ("xarray nodes", f["xa_node_bytes"], ""),
    )
    return [_line(f"  {name}", count, remark) for name, count, remark in parts if count]


def _cache(f: Mapping[str, Any]) -> list[str]:
    if not f["slab_cache"]:
        return []
    lines = ["", f"They live in the slab cache {printable(f['slab_cache'])}"]
    if f["slab_cache_active_objects"]:
        # Rounded down: a cache has other users, so never all of it.
        share = 10_000 * f["list_lru_one_in_cache"] // f["slab_cache_active_objects"] / 100
        lines[-1] += (
            f": {f['slab_cache_active_objects']:,} active objects in {human_bytes(f['slab_cache_bytes'])}, "
            f"{share:.2f} % of them explained."
        )
    return lines


def _line(name: str, count: int, remark: str = "") -> str:
    return f"{name:<20}{count:>18,}  {remark}".rstrip()
