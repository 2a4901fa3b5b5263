"""What a child printed: text before the frame, then the frame with a snapshot or the reason for none.

A frame is HEADER, lines that are JSON objects, and a last line that counts the rows or names the error. The child
may be a stranger's machine: nothing in it is believed that is not checked here, and nothing may break the run.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

# What a child may say of itself; the others are the runner's and the driver's to say.
FAILURES = {"unreachable", "denied", "no_drgn", "bad_core", "no_types", "mismatch", "over_budget", "inconsistent"}

HEADER = b"list-lru-audit snapshot 1\n"
TABLES = ("targets", "superblocks", "list_lrus", "memcgs")

# Columns that say which run and target a row belongs to, and of `targets` how its collection went: never the
# child's to say.
_STAMPED = {"run_id", "target"}
_OURS = _STAMPED | {"kind", "source", "via", "labels", "status", "error_type", "error", "attempts"}
_OURS |= {"started_at", "duration_ms"}


class FrameError(ValueError):
    """There is no frame, or it is not valid; the message says where."""


class Snapshot(NamedTuple):
    """columns: the one row of `targets`; tables: the other tables, each with its columns and rows."""

    columns: dict[str, Any]
    tables: dict[str, dict[str, list[Any]]]
    unsupported: str | None


class Failure(NamedTuple):
    """Why there is no snapshot; status is one of FAILURES."""

    status: str
    error_type: str
    error: str


def parse(output: bytes) -> Snapshot | Failure:
    """Return what the frame in a child's stdout says; what follows the frame's last line is ignored.

    :raises FrameError:
    """
    _, header, body = output.partition(HEADER)
    if not header:
        raise FrameError("no frame on stdout")
    tables: dict[str, dict[str, list[Any]]] = {name: {"columns": [], "rows": []} for name in TABLES}
    unsupported = None
    for number, line in enumerate(body.split(b"\n"), 1):
        record = _record(line, number)
        if "error" in record:
            return _failure(record["error"], number)
        if "end" in record:
            return _snapshot(tables, record["end"], unsupported)
        if "unsupported" in record:
            unsupported = str(record["unsupported"])
        else:
            _add(tables, record, number)
    raise FrameError("the frame has no end")


def _record(line: bytes, number: int) -> dict[str, Any]:
    if not line:
        # Only what follows the last newline is empty: the child died before the next line.
        raise FrameError("the frame has no end")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise FrameError(f"line {number} of the frame is cut off or not JSON") from None
    if not isinstance(record, dict):
        raise FrameError(f"line {number} of the frame is no object")
    return record


def _failure(error: Any, number: int) -> Failure:
    match error:
        case {"status": str(status), "error_type": str(error_type), "error": str(text)} if status in FAILURES:
            return Failure(status, error_type, text)
    raise FrameError(f"line {number} of the frame names no status that a child may give")


def _add(tables: dict[str, dict[str, list[Any]]], record: dict[str, Any], number: int) -> None:
    """Add a chunk of rows to its table."""
    match record:
        case {"table": str(name), "columns": list(columns), "rows": list(rows), **rest} if not rest:
            pass
        case _:
            raise FrameError(f"line {number} of the frame is no table")
    if name not in tables:
        raise FrameError(f"line {number} of the frame: unknown table")
    table = tables[name]
    if columns != table["columns"]:
        if table["rows"]:
            raise FrameError(f"line {number} of the frame: other columns than before in {name}")
        _check_columns(name, columns)
        table["columns"] = columns
    for row in rows:
        if not isinstance(row, list) or len(row) != len(columns):
            raise FrameError(f"line {number} of the frame: a row of {name} has not {len(columns)} values")
        if not all(_storable(value) for value in row):
            raise FrameError(f"line {number} of the frame: a value in {name} cannot be stored")
    table["rows"] += rows


def _check_columns(name: str, columns: list[Any]) -> None:
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise FrameError(f"the columns of {name} are not different names")
    ours = (_OURS if name == "targets" else _STAMPED).intersection(columns)
    if ours:
        raise FrameError(f"{name} has columns that are not the collector's: {', '.join(sorted(ours))}")


def _storable(value: Any, in_list: bool = False) -> bool:
    """Whether some Parquet column could hold it: 64 bits, finite, UTF-8; a list of such values."""
    match value:
        case None | bool():
            return True
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case str():
            return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
        case list():
            return not in_list and all(_storable(item, in_list=True) for item in value)
    return False


def _snapshot(tables: dict[str, dict[str, list[Any]]], counts: Any, unsupported: str | None) -> Snapshot:
    found = {name: len(table["rows"]) for name, table in tables.items()}
    if not isinstance(counts, dict) or {name: counts.get(name, 0) for name in found} != found or counts.keys() - found:
        raise FrameError(f"the frame counts other rows than its {found}")
    targets = tables.pop("targets")
    if found["targets"] != 1:
        raise FrameError(f"the frame has {found['targets']} rows of targets, not one")
    return Snapshot(dict(zip(targets["columns"], targets["rows"][0], strict=True)), tables, unsupported)
