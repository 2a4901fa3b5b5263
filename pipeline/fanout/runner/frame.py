"""Parser and validator of a child's stdout: arbitrary text, then a frame with a snapshot or a failure.

A frame is HEADER, lines that are JSON objects, and a last line with the row counts or the error. The child may run on
a hostile machine: this module validates every value, and no frame may break the run.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any, NamedTuple

# Statuses that a child may report. The runner and the driver set the others.
FAILURES = {"unreachable", "denied", "no_drgn", "bad_core", "no_types", "mismatch", "over_budget", "inconsistent"}

# Bounds a line while it is parsed, since a value of 3 bytes takes 64 there. The collector writes 100 rows a line, whose
# longest texts are paths.
MAX_LINE_BYTES = 8 << 20
# Bounds the rows of a frame in memory, to some 800 MiB: 400,000 list_lrus have 11 million values.
MAX_VALUES = 12 << 20

HEADER = b"list-lru-audit snapshot 1\n"
TABLES = ("targets", "superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages")

# Columns that a child may not send, so that no host can pose as another: those that identify a row's run and target,
# and in `targets` those that describe the target and its collection.
_KEYS = {"run_id", "target"}
_TARGET_COLUMNS = _KEYS | {"kind", "source", "via", "labels", "status", "error_type", "error", "attempts"}
_TARGET_COLUMNS |= {"started_at", "duration_ms", "carried_from", "input_digest"}


class FrameError(ValueError):
    """A missing or invalid frame; the message names the line."""


class Snapshot(NamedTuple):
    """The rows of one target.

    :param columns: the one row of `targets`.
    :param tables: the other tables, each with its columns and rows.
    :param unsupported_reason: why the kernel has no figures, or None if it has them.
    """

    columns: dict[str, Any]
    tables: dict[str, dict[str, list[Any]]]
    unsupported_reason: str | None


class Failure(NamedTuple):
    """The reason for a missing snapshot.

    :param status: one of FAILURES.
    """

    status: str
    error_type: str
    error: str


def parse(output: bytes) -> Snapshot | Failure:
    """Parse the frame in a child's stdout; ignore output after the frame's last line.

    :raises FrameError: the frame is missing or invalid.
    """
    start = output.find(HEADER)
    if start < 0:
        raise FrameError("no frame on stdout")
    body = io.BytesIO(output)  # shares the bytes
    body.seek(start + len(HEADER))
    tables: dict[str, dict[str, list[Any]]] = {name: {"columns": [], "rows": []} for name in TABLES}
    unsupported_reason = None
    value_count = 0
    for number, line in enumerate(iter(lambda: body.readline(MAX_LINE_BYTES + 1), b""), 1):
        record = _record(line, number)
        if "error" in record:
            return _failure(record["error"], number)
        if "end" in record:
            return _snapshot(tables, record["end"], unsupported_reason)
        if "unsupported" in record:
            unsupported_reason = str(record["unsupported"])
        else:
            value_count += _add_rows(tables, record, number)
            if value_count > MAX_VALUES:
                raise FrameError(f"the frame has more than {MAX_VALUES} values")
    raise FrameError("the frame has no end")


def _record(line: bytes, number: int) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise FrameError(f"line {number} of the frame has more than {MAX_LINE_BYTES >> 20} MiB")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise FrameError(f"line {number} of the frame is cut off or not JSON") from None
    if not isinstance(record, dict):
        raise FrameError(f"line {number} of the frame is not an object")
    return record


def _failure(error: Any, number: int) -> Failure:
    match error:
        case {"status": str(status), "error_type": str(error_type), "error": str(text)} if status in FAILURES:
            return Failure(status, error_type, text)
    raise FrameError(f"line {number} of the frame has no status that a child may report")


def _add_rows(tables: dict[str, dict[str, list[Any]]], record: dict[str, Any], number: int) -> int:
    """Add a chunk of rows to its table; return how many values it has, with the rows themselves."""
    match record:
        case {"table": str(name), "columns": list(columns), "rows": list(rows), **rest} if not rest:
            pass
        case _:
            raise FrameError(f"line {number} of the frame is not a table")
    if name not in tables:
        raise FrameError(f"line {number} of the frame: unknown table")
    table = tables[name]
    if columns != table["columns"]:
        if table["rows"]:
            raise FrameError(f"line {number} of the frame: the columns of {name} differ from those before")
        _check_columns(name, columns)
        table["columns"] = columns
    for row in rows:
        if not isinstance(row, list) or len(row) != len(columns):
            raise FrameError(f"line {number} of the frame: a row of {name} does not have {len(columns)} values")
        if not all(map(_storable, row)):
            raise FrameError(f"line {number} of the frame: a value in {name} cannot be stored")
    table["rows"] += rows
    elements = sum(len(value) for row in rows for value in row if isinstance(value, list))
    return len(rows) * (1 + len(columns)) + elements


def _check_columns(name: str, columns: list[Any]) -> None:
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise FrameError(f"the columns of {name} are not distinct names")
    reserved_columns = (_TARGET_COLUMNS if name == "targets" else _KEYS).intersection(columns)
    if reserved_columns:
        raise FrameError(f"{name} has columns that are not the collector's: {', '.join(sorted(reserved_columns))}")


def _storable(value: Any, in_list: bool = False) -> bool:
    """Whether a Parquet column can hold a value: 64 bits, finite, UTF-8, or a list of these."""
    match value:
        case int():
            return -(2**63) <= value < 2**64
        case None:
            return True
        case float():
            return math.isfinite(value)
        case str():
            return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
        case list():
            return not in_list and all(_storable(item, in_list=True) for item in value)
    return False


def _snapshot(tables: dict[str, dict[str, list[Any]]], counts: Any, unsupported_reason: str | None) -> Snapshot:
    rows = {name: len(table["rows"]) for name, table in tables.items()}
    if not isinstance(counts, dict) or {name: counts.get(name, 0) for name in rows} != rows or counts.keys() - rows:
        raise FrameError(f"the row counts in the frame's last line do not match its rows: {rows}")
    targets = tables.pop("targets")
    if rows["targets"] != 1:
        raise FrameError(f"the frame has {rows['targets']} rows of targets, not one")
    return Snapshot(dict(zip(targets["columns"], targets["rows"][0], strict=True)), tables, unsupported_reason)
