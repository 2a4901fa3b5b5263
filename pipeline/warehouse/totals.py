"""Sums over list_lrus, stored with each target and each superblock, so that views need not read or join all list_lrus.

They are computed when the rows are written, and compared with the rows, to the byte, before a run is published
(`sql/checks/totals_kept.sql`, `sql/checks/superblock_totals_kept.sql`). Targets have them since schema version 3,
superblocks since version 4; the views sum the rows of older runs.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

TARGET_TOTALS = (
    "list_lru_bytes",
    "lazy_low_bytes",
    "lazy_bytes",
    "lazy_high_bytes",
    "saves_objects_bytes",
    "saves_transpose_bytes",
    "saves_xarray_bytes",
)
SUPERBLOCK_TOTALS = ("list_lrus", "list_lru_bytes", "lazy_bytes")


def target_totals(targets: pa.Table, list_lrus: pa.Table) -> pa.Table:
    """Return the rows of `targets` with the columns TARGET_TOTALS, null for a target that is not `ok`."""
    sums = _sums(list_lrus, ["target"], TARGET_TOTALS)
    numbers = pc.index_in(targets["target"], sums["target"])
    is_ok = pc.equal(targets["status"], "ok")
    for name in TARGET_TOTALS:
        cells = pc.if_else(is_ok, pc.coalesce(sums[name].take(numbers), 0), None)
        targets = targets.set_column(targets.schema.get_field_index(name), name, cells)
    return targets


def superblock_totals(superblocks: pa.Table, list_lrus: pa.Table) -> pa.Table:
    """Return the rows of `superblocks`, in any order, with the columns SUPERBLOCK_TOTALS."""
    sums = _sums(list_lrus, ["target", "superblock"], SUPERBLOCK_TOTALS)
    superblocks = superblocks.drop_columns(list(SUPERBLOCK_TOTALS))
    joined = superblocks.join(sums, ["target", "address"], ["target", "superblock"])
    for name in SUPERBLOCK_TOTALS:
        joined = joined.set_column(joined.schema.get_field_index(name), name, pc.coalesce(joined[name], 0))
    return joined


def _sums(list_lrus: pa.Table, keys: list[str], names: tuple[str, ...]) -> pa.Table:
    """Sum columns over list_lrus with the same keys; `sql/views/_sized_list_lrus.sql` divides the savings likewise."""
    objects, arrays, xa_nodes = (
        list_lrus[name] for name in ("list_lru_one_bytes", "pointer_array_bytes", "xa_node_bytes")
    )
    nodes = list_lrus["nodes"]
    one_array = pc.if_else(pc.equal(nodes, 0), 0, pc.divide(arrays, pc.max_element_wise(nodes, 1)))
    columns = {
        "list_lrus": pa.repeat(1, len(list_lrus)),
        "list_lru_bytes": pc.add(pc.add(objects, arrays), pc.add(xa_nodes, list_lrus["node_array_bytes"])),
        "saves_objects_bytes": pc.subtract(objects, list_lrus["lazy_object_bytes"]),
        "saves_transpose_bytes": pc.subtract(arrays, one_array),
        "saves_xarray_bytes": pc.subtract(pc.add(one_array, xa_nodes), list_lrus["lazy_xa_node_bytes"]),
        **{name: list_lrus[name] for name in ("lazy_low_bytes", "lazy_bytes", "lazy_high_bytes")},
    }
    parts = pa.table({**{key: list_lrus[key] for key in keys}, **{name: columns[name] for name in names}})
    sums = parts.group_by(keys).aggregate([(name, "sum") for name in names])
    return sums.select([*keys, *(f"{name}_sum" for name in names)]).rename_columns([*keys, *names])
