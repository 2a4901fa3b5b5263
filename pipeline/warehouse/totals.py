"""Sums over a target's list_lrus, stored with the target so that a ranking reads one row per machine, not per list_lru.

They are computed when the rows are written, and compared with the rows, to the byte, before a run is published
(`sql/checks/totals_kept.sql`). Runs of schema version 2 and older have no sums; their views sum the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.warehouse.outcome import Record

TOTALS = (
    "list_lru_bytes",
    "lazy_low_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
    "saves_objects_bytes",
    "saves_transpose_bytes",
    "saves_xarray_bytes",
)


def totals(record: Record) -> dict[str, list[int | None]]:
    """Return the cells of the columns TOTALS of the table `targets`; null for a target that is not `ok`."""
    if record["targets"]["status"] != ["ok"]:
        return {name: [None] for name in TOTALS}
    return {name: [value] for name, value in zip(TOTALS, _sums(record.get("list_lrus", {})), strict=True)}


def _sums(lists: Mapping[str, Sequence[Any]]) -> tuple[int, ...]:
    """Return the values of TOTALS; `sql/views/_sized_list_lrus.sql` divides the savings in the same way."""

    def total(name: str) -> int:
        return sum(lists.get(name, ()))

    objects, arrays, xa_nodes = map(total, ("list_lru_one_bytes", "pointer_array_bytes", "xa_node_bytes"))
    one_array = sum(
        bytes_ // nodes if nodes else 0
        for bytes_, nodes in zip(lists.get("pointer_array_bytes", ()), lists.get("nodes", ()), strict=True)
    )
    return (
        objects + arrays + xa_nodes + total("node_array_bytes"),
        total("lazy_low_bytes"),
        total("lazy_bytes"),
        total("lazy_high_bytes"),
        objects - total("lazy_object_bytes"),
        arrays - one_array,
        one_array + xa_nodes - total("lazy_xa_node_bytes"),
    )
