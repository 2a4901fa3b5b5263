"""One target's outcome to a record of columns, checked against the schema.

A collector on a hostile host sends the numbers, so nothing of it is believed: an outcome that does not fit becomes
the status `bad_output` with the reason, keeps what the driver knows, and loses every row of the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError
from pipeline.warehouse.schema import Misfit

GOOD = ("ok", "unsupported")
HOST_TABLES = ("superblocks", "list_lrus", "memcgs")
# A host with 30,000 containers has about 400,000 list_lrus.
MAX_ROWS = 1_048_576

# table -> column -> JSON values; run_id and target are not among them: the driver stamps those when it writes.
Record = dict[str, dict[str, list[Any]]]
STAMPED = frozenset({"run_id", "target"})


def kept(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return an outcome as runner and fanout make it for the spool: the driver's part as a record, what the host sent
    as `host`, unread. To check it takes longer than to gather it, and nobody waits for it before the run is written.

    Raises WarehouseError when what the driver itself wrote does not fit, which is a defect and not the host's doing.
    """
    made: dict[str, Any] = _driver_part(outcome)
    if outcome["row"].get("status") in GOOD:
        made["host"] = {"row": outcome["row"], "tables": outcome["tables"]}
    return made


def record(spooled: Mapping[str, Any]) -> Record:
    """Return the record of what `kept` returned, the host's rows if they fit, else `bad_output`; a record as it is."""
    made = {name: columns for name, columns in spooled.items() if name != "host"}
    if "host" not in spooled:
        return made
    try:
        host = _host_part(spooled["host"])
        full = {**host, "targets": {**made["targets"], **host["targets"]}, "attempts": made["attempts"]}
        for name in ("targets", *HOST_TABLES):
            schema.tables()[name].check(full[name], STAMPED)
    except Misfit as why:
        return refuse(made, "schema", str(why))
    return full


def refuse(made: Record, error_type: str, error: str) -> Record:
    """Return the record of the same target with status `bad_output`, its last attempt too, and no row of the host."""
    ending = {"status": "bad_output", "error_type": error_type, "error": error}
    targets = {name: cells for name, cells in made["targets"].items() if name in _driver_columns()}
    attempts = {name: list(cells) for name, cells in made["attempts"].items()}
    for name, value in ending.items():
        targets[name] = [value]
        if attempts["attempt"]:
            attempts[name][-1] = value
    return {"targets": targets, "attempts": attempts}


def escaped(value: Any) -> Any:
    """Backslash-escape what is not UTF-8 (a path that Python decoded with surrogates) in text, or in a map of text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {escaped(key): escaped(text) for key, text in value.items()}
    return value


def _driver_columns() -> set[str]:
    return {column.name for column in schema.tables()["targets"].columns if column.driver}


def _driver_part(outcome: Mapping[str, Any]) -> Record:
    declared = schema.tables()
    driver = _driver_columns()
    names = [column.name for column in declared["attempts"].columns if column.name not in STAMPED]
    made: Record = {
        "targets": {name: [escaped(value)] for name, value in outcome["row"].items() if name in driver},
        "attempts": {name: [escaped(attempt.get(name)) for attempt in outcome["attempts"]] for name in names},
    }
    try:
        for name, cells in made.items():
            declared[name].check(cells, STAMPED)
    except Misfit as why:
        raise WarehouseError(f"{outcome['target']!a}: {why}: this is a defect of list-lru-audit") from why
    return made


def _host_part(host: Mapping[str, Any]) -> Record:
    driver = _driver_columns()
    tables = host["tables"]
    if isinstance(tables, str):  # as pipeline.fanout hands them on
        tables = json.loads(tables)
    if unknown := set(tables) - set(HOST_TABLES):
        raise Misfit(f"a collector writes no table {min(unknown)!a:.60}")
    return {
        "targets": {name: [value] for name, value in host["row"].items() if name not in driver},
        **{name: _columns(name, tables.get(name)) for name in HOST_TABLES},
    }


def _columns(name: str, table: Any) -> dict[str, list[Any]]:
    match table:
        case None:
            required = (column.name for column in schema.tables()[name].columns if not column.nullable)
            return {column: [] for column in required if column not in STAMPED}
        case {"columns": list(columns), "rows": list(rows)} if _are_names(columns) and _are_rows(rows, len(columns)):
            if len(rows) > MAX_ROWS:
                raise Misfit(f"{name} has more than {MAX_ROWS} rows")
            cells: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [()] * len(columns)
            return {column: list(values) for column, values in zip(columns, cells, strict=True)}
    raise Misfit(f"{name} is not columns and rows of that many values")


def _are_names(columns: list[Any]) -> bool:
    return all(isinstance(column, str) for column in columns) and len(set(columns)) == len(columns)


def _are_rows(rows: list[Any], width: int) -> bool:
    return set(map(type, rows)) <= {list} and set(map(len, rows)) <= {width}
