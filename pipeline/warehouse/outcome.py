"""The outcome of one target as a record of columns, checked against the schema.

A collector on a hostile host may send any data. An outcome that does not fit the schema becomes `bad_output` with the
reason: it keeps the columns that the driver wrote, and loses every row of the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.collector.status import GOOD
from pipeline.common.text import escape_surrogates
from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError
from pipeline.warehouse.schema import Misfit

HOST_TABLES = ("superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages")
# Bounds the rows of one table from one host: a host with 30,000 containers has about 400,000 list_lrus.
MAX_ROWS = 1_048_576

# table -> column -> JSON values, without STAMPED_COLUMNS, which the driver adds when it writes the tables.
Record = dict[str, dict[str, list[Any]]]
STAMPED_COLUMNS = frozenset({"run_id", "target"})


def spool_entry(outcome: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return an outcome in the form of the spool: the driver's part as a record with the host's part unchecked as
    `host`, and the host's tables if they are JSON text.

    Checking the host's part takes longer than collecting it, and can wait until the run is written.

    :raises WarehouseError: the driver's own part does not fit the schema, which is a defect of this program.
    """
    entry: dict[str, Any] = _driver_part(outcome)
    if outcome["row"].get("status") not in GOOD:
        return entry, b""
    if isinstance(outcome["tables"], str):  # the form that pipeline.fanout passes on
        return {**entry, "host": {"row": outcome["row"]}}, outcome["tables"].encode()
    return {**entry, "host": {"row": outcome["row"], "tables": outcome["tables"]}}, b""


def record_entry(record: Record) -> tuple[Record, bytes]:
    """Return a record in the form of the spool."""
    tables = {name: columns for name, columns in record.items() if name in HOST_TABLES}
    entry = {name: columns for name, columns in record.items() if name not in HOST_TABLES}
    return entry, json.dumps(tables, separators=(",", ":")).encode()


def target_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an entry in `targets`, with the host's part unchecked.

    :raises Misfit: the host's tables have rows, not columns; only `checked_record` reads them.
    """
    row = {name: cells[0] for name, cells in entry["targets"].items()}
    if "host" not in entry:
        return row
    if "tables" in entry["host"]:
        raise Misfit("tables of rows")
    return row | _host_columns(entry["host"])


def checked_record(entry: Mapping[str, Any], tables: bytes) -> Record:
    """Return the record of an outcome in the spool, as `bad_output` if the host's part does not fit the schema.

    An entry without a host's part is a record already.
    """
    record = {name: columns for name, columns in entry.items() if name not in ("host", "earlier_run")}
    if "host" not in entry:
        return {**record, **json.loads(tables or b"{}")}
    try:
        host = _host_part(entry["host"], tables)
        full = {**host, "targets": {**record["targets"], **host["targets"]}, "attempts": record["attempts"]}
        for name in ("targets", *HOST_TABLES):
            schema.tables()[name].check(full[name], STAMPED_COLUMNS)
    except Misfit as misfit:
        return bad_output_record(record, "schema", str(misfit))
    return full


def bad_output_record(record: Record, error_type: str, error: str) -> Record:
    """Return the record of the same target without the host's part, and `bad_output` for it and its last attempt."""
    result = {"status": "bad_output", "error_type": error_type, "error": error}
    targets = {name: cells for name, cells in record["targets"].items() if name in _driver_columns()}
    # A carried target has no attempts.
    attempts = {name: list(cells) for name, cells in record.get("attempts", {}).items()}
    for name, value in result.items():
        targets[name] = [value]
        if attempts.get("attempt"):
            attempts[name][-1] = value
    return {"targets": targets, "attempts": attempts}


def _driver_columns() -> set[str]:
    return {column.name for column in schema.tables()["targets"].columns if column.driver}


def _driver_part(outcome: Mapping[str, Any]) -> Record:
    tables = schema.tables()
    driver_columns = _driver_columns()
    attempt_columns = [column.name for column in tables["attempts"].columns if column.name not in STAMPED_COLUMNS]
    row, attempts = outcome["row"], outcome["attempts"]
    record: Record = {
        "targets": {name: [escape_surrogates(value)] for name, value in row.items() if name in driver_columns},
        "attempts": {name: [escape_surrogates(attempt.get(name)) for attempt in attempts] for name in attempt_columns},
    }
    try:
        for name, cells in record.items():
            tables[name].check(cells, STAMPED_COLUMNS)
    except Misfit as misfit:
        raise WarehouseError(f"{outcome['target']!a}: {misfit}: this is a defect of list-lru-audit") from misfit
    return record


def _host_part(host: Mapping[str, Any], tables: bytes) -> Record:
    columns = _columns_of_rows(host["tables"]) if "tables" in host else json.loads(tables)
    if unknown := set(columns) - set(HOST_TABLES):
        raise Misfit(f"unknown table {min(unknown)!a:.60} from the collector")
    for name in HOST_TABLES:
        required_names = [column.name for column in schema.tables()[name].columns if not column.nullable]
        no_rows: dict[str, list[Any]] = {key: [] for key in required_names if key not in STAMPED_COLUMNS}
        columns[name] = cells_by_name = columns.get(name) or no_rows
        if max(map(len, cells_by_name.values()), default=0) > MAX_ROWS:
            raise Misfit(f"{name} has more than {MAX_ROWS} rows")
    return {"targets": {name: [value] for name, value in _host_columns(host).items()}, **columns}


def _host_columns(host: Mapping[str, Any]) -> dict[str, Any]:
    driver_columns = _driver_columns()
    return {name: value for name, value in host["row"].items() if name not in driver_columns}


def _columns_of_rows(tables: Any) -> dict[str, dict[str, list[Any]]]:
    if isinstance(tables, str):  # in a run that version 0.1.0 has staged
        tables = json.loads(tables)
    columns_by_table = {}
    for name, table in tables.items():
        match table:
            case {"columns": list(names), "rows": list(rows)} if _are_names(names) and _are_rows(rows, len(names)):
                cells: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(names)
                columns_by_table[name] = {key: list(values) for key, values in zip(names, cells, strict=True)}
            case _:
                raise Misfit(f"{name} must have distinct columns, and rows with one value for each column")
    return columns_by_table


def _are_names(columns: list[Any]) -> bool:
    return all(isinstance(column, str) for column in columns) and len(set(columns)) == len(columns)


def _are_rows(rows: list[Any], width: int) -> bool:
    return set(map(type, rows)) <= {list} and set(map(len, rows)) <= {width}
