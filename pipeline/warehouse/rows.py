"""The rows of outcomes as Arrow tables, converted many targets at a time.

Arrow parses and checks a column of many targets at once, where Python would take each value in turn. If a value does
not fit the schema, the targets are divided until the one with that value is alone, and becomes `bad_output`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.warehouse import schema
from pipeline.warehouse.outcome import HOST_TABLES, MAX_ROWS, STAMPED_COLUMNS, Record, checked_record, target_row
from pipeline.warehouse.schema import Misfit
from pipeline.warehouse.totals import superblock_totals, target_totals

# JSON that one thread parses at a time: that of some 30 targets with 240 rows each.
_PARSED_BYTES = 1 << 20


class Spooled(NamedTuple):
    """A target with its entry in the spool, its tables there (a JSON object of columns, or empty), and their size."""

    target: str
    entry: Mapping[str, Any]
    tables: bytes
    line_bytes: int


def to_tables(outcomes: Sequence[Spooled], run_id: str) -> dict[str, pa.Table]:
    """Return the rows of outcomes in each table but `runs`.

    :param outcomes: sorted by target; so are the rows, then by address.
    """
    rows = _convert(outcomes)
    rows["targets"] = target_totals(rows["targets"], rows["list_lrus"])
    rows["superblocks"] = superblock_totals(rows["superblocks"], rows["list_lrus"])
    return {name: _stamp(schema.tables()[name], table, run_id) for name, table in rows.items()}


def _stamp(table: schema.Table, rows: pa.Table, run_id: str) -> pa.Table:
    """Return rows with their run_id, in the order that the files have."""
    columns = {"run_id": pa.repeat(run_id, len(rows)), **{name: rows[name] for name in rows.column_names}}
    stamped = pa.Table.from_arrays([columns[name] for name in table.arrow.names], schema=table.arrow)
    return stamped.sort_by(list(table.order)) if table.order else stamped


def _convert(outcomes: Sequence[Spooled]) -> dict[str, pa.Table]:
    """Return the rows without `run_id`."""
    try:
        return _convert_fitting(outcomes)
    except Misfit:
        if len(outcomes) == 1:
            (outcome,) = outcomes
            return _convert_record(outcome.target, checked_record(outcome.entry, outcome.tables))
    middle = len(outcomes) // 2
    parts = _convert(outcomes[:middle]), _convert(outcomes[middle:])
    return {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}


def _convert_fitting(outcomes: Sequence[Spooled]) -> dict[str, pa.Table]:
    """Convert outcomes that fit the schema.

    :raises Misfit: one of them does not, or is in a form that only `checked_record` reads.
    """
    targets = [outcome.target for outcome in outcomes]
    target_rows = [target_row(outcome.entry) for outcome in outcomes]
    attempts = [outcome.entry.get("attempts", {}) for outcome in outcomes]  # a carried target has none
    keys = {
        "targets": targets,
        "attempts": [target for target, cells in zip(targets, attempts, strict=True) for _ in cells.get("attempt", ())],
    }
    record = {
        "targets": {name: [row.get(name) for row in target_rows] for name in set().union(*target_rows)},
        "attempts": {
            column.name: [cell for cells in attempts for cell in cells.get(column.name, ())]
            for column in _columns("attempts")
        },
    }
    for name, columns in record.items():
        schema.tables()[name].check(columns, STAMPED_COLUMNS)
    rows = {name: _table(name, keys[name], columns) for name, columns in record.items()}
    return rows | _parse_tables(targets, [outcome.tables for outcome in outcomes])


def _convert_record(target: str, record: Record) -> dict[str, pa.Table]:
    rows = {}
    for name in ("targets", "attempts", *HOST_TABLES):
        columns = record.get(name, {})
        rows[name] = _table(name, [target] * max(map(len, columns.values()), default=0), columns)
    return rows


def _table(name: str, targets: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return columns of JSON values as a table; a missing column is null."""
    nulls = [None] * len(targets)
    arrays = {
        column.name: column.array(targets if column.name == "target" else columns.get(column.name, nulls))
        for column in schema.tables()[name].columns
        if column.name != "run_id"
    }
    return pa.table(arrays)


def _parse_tables(targets: Sequence[str], texts: Sequence[bytes]) -> dict[str, pa.Table]:
    """Parse the tables of targets, one JSON object each: table -> column -> values.

    :raises Misfit: a value or a column does not fit the schema, or only some of the targets have a nullable column.
    """
    lines = b"\n".join(text or b"{}" for text in texts)
    try:
        parsed = pa.json.read_json(
            BytesIO(lines),
            pa.json.ReadOptions(block_size=max(_PARSED_BYTES, *map(len, texts), 0) + 1),
            pa.json.ParseOptions(explicit_schema=_json_schema(), unexpected_field_behavior="error"),
        ).combine_chunks()
        parsed.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Misfit(str(error)) from error
    if len(parsed) != len(targets):
        raise Misfit(f"{len(parsed)} objects of {len(targets)} targets")
    return {name: _parsed_table(name, targets, parsed[name].combine_chunks()) for name in HOST_TABLES}


@cache
def _json_schema() -> pa.Schema:
    """Return the Arrow form of the JSON: for each table a struct with a list for each column."""
    return pa.schema(
        {
            name: pa.struct({column.name: pa.list_(_json_type(column)) for column in _columns(name)})
            for name in HOST_TABLES
        }
    )


def _json_type(column: schema.Column) -> pa.DataType:
    return pa.string() if column.type == "binary" else schema.TYPES[column.type].arrow


def _columns(name: str) -> list[schema.Column]:
    return [column for column in schema.tables()[name].columns if column.name not in STAMPED_COLUMNS]


def _parsed_table(name: str, targets: Sequence[str], structs: pa.StructArray) -> pa.Table:
    columns = _columns(name)
    lists = dict(zip((column.name for column in columns), structs.flatten(), strict=True))
    key = next(column.name for column in columns if not column.nullable)
    counts = pc.list_value_length(lists[key])
    if counts.null_count != structs.null_count or (pc.max(counts).as_py() or 0) > MAX_ROWS:
        raise Misfit(f"{name}.{key} is missing or has more than {MAX_ROWS} rows")
    arrays = {"target": pa.array(targets).take(pc.list_parent_indices(lists[key]))}
    for column in columns:
        values = lists[column.name]
        if column.nullable and values.null_count == len(values):
            arrays[column.name] = pa.nulls(len(arrays["target"]), schema.TYPES[column.type].arrow)
        elif pc.list_value_length(values).equals(counts):
            arrays[column.name] = _checked(column, values.flatten())
        else:
            raise Misfit(f"{name}.{column.name} is missing or has another length than {key}")
    return pa.table(arrays)


def _checked(column: schema.Column, values: pa.Array) -> pa.Array:
    if column.type == "binary":
        cells = values.to_pylist()
        if column.misfit(cells):
            raise Misfit(f"{column.name} does not fit")
        return column.array(cells)
    if not column.fits(values):
        raise Misfit(f"{column.name} does not fit")
    return values
