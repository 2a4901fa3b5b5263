"""One kernel on one screen, from one target's outcome.

The analysis is that of commit 5abc1e37afa0 ("mm: list_lru: allocate list_lru_one only when needed") (in v5.18).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.collector.model import cost
from pipeline.common.text import human_bytes, human_error, printable

_SUMMED_COLUMNS = (
    "list_lru_one_objects",
    "list_lru_one_bytes",
    "pointer_array_bytes",
    "node_array_bytes",
    "xa_node_bytes",
    "items",
    "lazy_low_bytes",
    "lazy_charged_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
    "lazy_object_bytes",
    "lazy_xa_node_bytes",
    "lazy_empty_bytes",
    "eager_bytes",
)


# The columns of memcg_memory by the state of memcgs, and the words for them.
_STATES = {
    "online_bytes": "for online cgroups",
    "dying_bytes": "for dying ones",
    "left_bytes": "for none",
}
# Parts of memcg_memory that an upgrade may enlarge: without one of them the net would be too high.
_PARTS_OF_A_NET = {"list_lru", "shrinker_info", "memcg_structs", "memcg_percpu"}


def host_waste(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of ``targets`` and of the view ``host_waste`` for a target, and the sums over its list_lrus.

    A sum is None unless every list_lru has the figure. A target that is not good has its ``targets`` row only.

    :param outcome: an outcome of ``pipeline.fanout``.
    """
    row = {"target": outcome["target"], **outcome["row"]}
    row |= {name: _iso(row[name]) for name in ("started_at", "captured_at", "booted_at") if row.get(name)}
    if row["status"] != "ok":
        return row
    list_lrus = outcome["tables"]["list_lrus"]
    sums = {name: _sum(_cells(list_lrus, name)) for name in _SUMMED_COLUMNS}
    parts = ("list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes", "xa_node_bytes")
    list_lru_bytes = sum(sums[name] for name in parts)
    formula_bytes = None
    if row["memcg_nr_cache_ids"] is not None:
        formula_bytes = cost.formula_bytes(row["superblocks"], len(row["possible_nodes"]), row["memcg_nr_cache_ids"])
    online_ids = sum(cache_id is not None for cache_id in _cells(outcome["tables"]["memcgs"], "cache_id"))
    wasted_bytes = list_lru_bytes - sums["lazy_bytes"]
    memcg_memory = _rows(outcome["tables"]["memcg_memory"])
    arrays = zip(_cells(list_lrus, "pointer_array_bytes"), _cells(list_lrus, "nodes"), strict=True)
    one_array_bytes = sum(array_bytes // nodes if nodes else 0 for array_bytes, nodes in arrays)
    return {
        **row,
        "list_lru_bytes": list_lru_bytes,
        "formula_bytes": formula_bytes,
        "dead_ids": None if row["memcg_nr_cache_ids"] is None else row["memcg_nr_cache_ids"] - online_ids,
        "unknown_list_lrus": _cells(list_lrus, "owner").count("unknown"),
        "detached_superblocks": _cells(outcome["tables"]["superblocks"], "detached").count(True),
        **sums,
        "saves_objects_bytes": sums["list_lru_one_bytes"] - sums["lazy_object_bytes"],
        "saves_transpose_bytes": sums["pointer_array_bytes"] - one_array_bytes,
        "saves_xarray_bytes": one_array_bytes + sums["xa_node_bytes"] - sums["lazy_xa_node_bytes"],
        "wasted_bytes": wasted_bytes,
        "wasted_pct_of_memory": round(100 * wasted_bytes / row["memory_bytes"], 2),
        "lower_bound": row["lazy_basis"] == "online",
        "memcg_memory": memcg_memory,
        "net_bytes": _net_bytes(memcg_memory),
    }


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _net_bytes(memcg_memory: list[dict[str, Any]]) -> int | None:
    """Return net_bytes of the view ``upgrade_net``, or None if a part is not predicted that the upgrade may enlarge."""
    predicted_rows = {row["part"]: row for row in memcg_memory if row["upgraded_bytes"] is not None}
    if not predicted_rows.keys() >= _PARTS_OF_A_NET:
        return None
    costs = [row for part, row in predicted_rows.items() if part != "dying_page_cache"]
    return sum(row["held_bytes"] - row["upgraded_bytes"] for row in costs)


def _cells(table: Mapping[str, Any], column: str) -> list[Any]:
    if not table["rows"]:
        return []
    index = table["columns"].index(column)
    return [row[index] for row in table["rows"]]


def _sum(cells: list[Any]) -> Any:
    return None if None in cells else sum(cells)


def _iso(microseconds: int) -> str:
    """Return a time since the epoch in ISO 8601, as `report` and `sql` write it."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat().replace("+00:00", "Z")


def text(figures: Mapping[str, Any]) -> str:
    """Return the screen of a good target.

    :param figures: from `host_waste`.
    """
    f = figures
    lines = [
        f"{f['host']}  {f['kernel_release']}  {f['arch']}  "
        f"{human_bytes(f['memory_bytes'])}" + (f"  {f['captured_at']}" if f["captured_at"] else ""),
        f"layout {f['layout']}, types from {f['types_source']}, {f['consistency']}",
        "",
    ]
    if f["status"] == "unsupported":
        return _printable_lines([*lines, f"unsupported: {f['error'] or ''}"])
    lines += _eager_kernel(f) if f["lazy_target"] is not None else _lazy_kernel(f)
    lines += _memcg_memory(f)
    if f["notes"]:
        lines += ["", f"note: {f['notes']}"]
    return _printable_lines(lines)


def _printable_lines(lines: list[str]) -> str:
    """Return lines without what the host's texts, which no schema has checked here, could do to a terminal."""
    return "".join(printable(line) + "\n" for line in lines)


def _eager_kernel(f: Mapping[str, Any]) -> list[str]:
    ids, nodes = f["memcg_nr_cache_ids"], len(f["possible_nodes"])
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
        *_allocation(f),
        "",
        *_lazy_estimate(f),
        *_cache(f),
    ]


def _lazy_estimate(f: Mapping[str, Any]) -> list[str]:
    """The bytes of a lazy kernel: expected between two bounds if objects' owners are known, else the upper bound."""
    name = f"lazy {f['lazy_target']}"
    share = f", {f['wasted_pct_of_memory']:.2f} % of memory"
    if f["lower_bound"]:
        return [
            _bytes_line(name, f["lazy_bytes"], "at most, {}: every online memcg, every list"),
            _bytes_line("", f["lazy_low_bytes"], "at least, {}: memcgs with items on a list now"),
            _lower_bound_line("wasted", f["wasted_bytes"], share),
        ]
    error = human_error(f["lazy_error_bytes"])
    return [
        _bytes_line(name, f["lazy_bytes"], f"{{}}{error} expected, entries that outlive their objects included"),
        _bytes_line("", f["lazy_charged_bytes"], "at least, {}: memcgs charged for objects now"),
        _bytes_line("", f["lazy_high_bytes"], "at most, {}: every online memcg, every list"),
        _bytes_line("wasted", f["wasted_bytes"], "{}" + share),
    ]


def _lazy_kernel(f: Mapping[str, Any]) -> list[str]:
    return [
        *_machine(f),
        "",
        "This kernel allocates list_lru_one only when needed (5abc1e37afa0, v5.18): nothing to save.",
        *_allocation(f),
        _line("without items", f["lazy_empty_bytes"], "of list_lru_memcg, kept until their memcg goes offline"),
        *_eager_estimate(f),
        *_cache(f),
    ]


def _eager_estimate(f: Mapping[str, Any]) -> list[str]:
    if f["eager_bytes"] is None:
        return []
    return [
        _bytes_line(
            "eager kernel", f["eager_bytes"], "{}: as many ids as the highest online needs, every node, every list"
        )
    ]


def _machine(f: Mapping[str, Any]) -> list[str]:
    detached = f["detached_superblocks"]
    return [
        _line("superblocks", f["superblocks"], f"{detached:,} of them unmounted, but still in use" if detached else ""),
        _line("NUMA nodes", len(f["possible_nodes"]), f"possible; {len(f['online_nodes'])} online"),
        _line("online memcgs", f["online_memcgs"], f"and {f['dying_memcgs']} dying"),
    ]


def _allocation(f: Mapping[str, Any]) -> list[str]:
    lists = f"{f['list_lrus']} list_lrus"
    if f["unknown_list_lrus"]:
        lists += f" ({f['unknown_list_lrus']} of unknown owner)"
    return [_bytes_line("as allocated", f["list_lru_bytes"], lists + ", {}"), *_parts(f)]


def _parts(f: Mapping[str, Any]) -> list[str]:
    size = f["list_lru_one_bytes"] // f["list_lru_one_objects"] if f["list_lru_one_objects"] else 0
    object_name = "list_lru_one" if f["layout"].startswith("array") else "list_lru_memcg"
    object_name = "list_lru_per_memcg" if "mlrus" in f["layout"] else object_name
    parts = (
        (object_name, f["list_lru_one_bytes"], f"{f['list_lru_one_objects']:,} objects of {size} bytes"),
        ("pointer arrays", f["pointer_array_bytes"], ""),
        ("node arrays", f["node_array_bytes"], ""),
        ("xarray nodes", f["xa_node_bytes"], ""),
    )
    return [_line(f"  {name}", count, remark) for name, count, remark in parts if count]


def _memcg_memory(f: Mapping[str, Any]) -> list[str]:
    """All that memory cgroups cost but the list_lrus, and the net of an upgrade with them."""
    parts = [row for row in f["memcg_memory"] if row["part"] != "list_lru"]
    if not parts:
        return []
    lines = ["", "What else memory cgroups cost:"]
    for row in parts:
        remarks = [f"{human_bytes(row[name])} {words}" for name, words in _STATES.items() if row[name]]
        if row["upgraded_bytes"] is not None:
            remarks.append(f"{human_bytes(row['upgraded_bytes'])} with Linux {f['target_kernel']}")
        lines.append(_line(row["part"], row["held_bytes"], "; ".join(remarks)))
    if f["net_bytes"] is not None:
        remark = f" freed by an upgrade to Linux {f['target_kernel']}, list_lrus included"
        if f["lower_bound"]:
            lines.append(_lower_bound_line("net", f["net_bytes"], remark))
        else:
            lines.append(_bytes_line("net", f["net_bytes"], "{}" + human_error(f["lazy_error_bytes"]) + remark))
    return lines


def _cache(f: Mapping[str, Any]) -> list[str]:
    if not f["slab_cache"]:
        return []
    lines = ["", f"They live in the slab cache {f['slab_cache']}"]
    if f["slab_cache_active_objects"]:
        # Rounded down, so that 100.00 % means all objects; a cache has other users.
        share = 10_000 * f["list_lru_one_in_cache"] // f["slab_cache_active_objects"] / 100
        lines[-1] += (
            f": {f['slab_cache_active_objects']:,} active objects in {human_bytes(f['slab_cache_bytes'])}, "
            f"{share:.2f} % of them explained."
        )
    return lines


def _lower_bound_line(name: str, count: int, remark: str) -> str:
    """Return a line of bytes that may be more; a bound of 0 or less says nothing."""
    if count <= 0:
        return f"{name:<20}{'none known':>18}"
    return _bytes_line(name, count, "at least, {}" + remark)


def _bytes_line(name: str, count: int, remark: str) -> str:
    # Not format(), for which braces in a host's texts in the remark would be fields.
    return _line(name, count, remark.replace("{}", human_bytes(count)))


def _line(name: str, count: int, remark: str = "") -> str:
    return f"{name:<20}{count:>18,}  {remark}".rstrip()
