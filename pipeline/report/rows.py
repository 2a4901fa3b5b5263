"""Rows of a query's result as table, CSV, JSON, JSON lines, markdown or Parquet. Numbers stay exact."""

from __future__ import annotations

import csv as csv_module
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import IO, Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len

from pipeline.common.errors import AuditError
from pipeline.common.limits import allocations
from pipeline.common.text import human_bytes, joined_lines, printable
from pipeline.report import escape

_MAX_TABLE_ROWS = 1_000
_MAX_CELL_CHARACTERS = 500
_BATCH_ROWS = 4_096
# A result has 1 GiB at most. As JSON, with the columns' names in each row, what people ask for has ten times as much.
_MAX_CHARACTERS = 16 << 30


class FormatError(AuditError):
    """A format cannot represent a result. The message is one line."""


class _LimitedText:
    """Writes at most _MAX_CHARACTERS to a file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._remaining = _MAX_CHARACTERS

    def write(self, text: str) -> None:
        self._remaining -= len(text)
        if self._remaining < 0:
            size = human_bytes(_MAX_CHARACTERS)
            raise FormatError(f"the result as text is longer than {size}: select fewer rows or columns")
        self._file.write(text)


def table(result: pa.Table, file: TextIO) -> None:
    """Write aligned columns, each as wide as its widest cell. Rows and long cells are cut at a limit."""
    if result.column_names == ["explain_key", "explain_value"]:
        for _, plan in values(result):
            for line in cell(plan).splitlines():
                file.write(printable(line) + "\n")
        return
    titles = [_short(name) for name in result.column_names]
    cells = [[_short(cell(value)) for value in row] for row in values(result.slice(0, _MAX_TABLE_ROWS))]
    widths = [max(map(cell_len, column)) for column in zip(titles, *cells, strict=True)]
    right_aligned = [_is_number(field.type) for field in result.schema]
    for row in (titles, ["-" * width for width in widths], *cells):
        texts = (
            " " * (width - cell_len(text)) + text if is_right else text + " " * (width - cell_len(text))
            for text, width, is_right in zip(row, widths, right_aligned, strict=True)
        )
        file.write("  ".join(texts).rstrip() + "\n")
    if result.num_rows > _MAX_TABLE_ROWS:
        file.write(f"the first {_MAX_TABLE_ROWS:,} of {result.num_rows:,} rows; another --format has them all\n")


def csv(result: pa.Table, file: TextIO) -> None:
    """Write RFC 4180 CSV with a header. Text is escaped against formulas and line breaks."""
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow([escape.csv(name) for name in result.column_names])
    escapes = [str if _is_number(field.type) else escape.csv for field in result.schema]
    for row in values(result):
        writer.writerow([escape_cell(cell(value)) for escape_cell, value in zip(escapes, row, strict=True)])


def json_(result: pa.Table, file: TextIO) -> None:
    """Write one JSON array with one object per row."""
    separator = "[\n"
    for row in values(result):
        file.write(separator + " " + dumps(dict(zip(result.column_names, row, strict=True))))
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def jsonl(result: pa.Table, file: TextIO) -> None:
    """Write one JSON object per line."""
    for row in values(result):
        file.write(dumps(dict(zip(result.column_names, row, strict=True))) + "\n")


def markdown(result: pa.Table, file: TextIO) -> None:
    """Write a table in GitHub's markdown."""
    file.write("| " + " | ".join(map(escape.markdown, result.column_names)) + " |\n")
    file.write("|" + "".join(" ---: |" if _is_number(field.type) else " --- |" for field in result.schema) + "\n")
    for row in values(result):
        file.write("| " + " | ".join(escape.markdown(cell(value)) for value in row) + " |\n")


def parquet(result: pa.Table, file: BinaryIO) -> None:
    """Write a Parquet file. This is the only format that needs a binary file.

    :raises FormatError: the result has a type that Parquet lacks.
    """
    try:
        pq.write_table(result, file, compression="zstd")
    except pa.ArrowException as error:
        reason = joined_lines(str(error))
        raise FormatError(f"Parquet cannot store this result; cast it or use another --format: {reason}") from error


FORMATS: dict[str, Callable[[pa.Table, Any], None]] = {
    "table": table,
    "csv": csv,
    "json": json_,
    "jsonl": jsonl,
    "markdown": markdown,
    "parquet": parquet,
}


def write(result: pa.Table, format_name: str, file: IO[Any], memory_bytes: int) -> None:
    """Write a result in one of FORMATS within limits of memory and length.

    A small result can be a long text: JSON repeats the columns' names in each row, and an enum's value is an index.

    :raises FormatError: the format cannot represent the result, or a limit is exceeded.
    """
    try:
        with allocations(memory_bytes):
            FORMATS[format_name](result, file if format_name == "parquet" else _LimitedText(file))
    except MemoryError as error:
        reason = f"the result's values take more than {human_bytes(memory_bytes)} of memory as {format_name}"
        raise FormatError(f"{reason}: select fewer or shorter ones, or raise the limit with --memory") from error


def values(result: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield rows of plain values, converting one batch of rows at a time to save memory."""
    for batch in result.to_batches(max_chunksize=_BATCH_ROWS):
        yield from zip(*map(_plain_column, batch.columns), strict=True)


def records(result: pa.Table) -> list[dict[str, Any]]:
    """Return rows of plain values as dicts."""
    return [dict(zip(result.column_names, row, strict=True)) for row in values(result)]


def cell(value: Any) -> str:
    """Return a plain value as text: null is empty; numbers, booleans, lists and maps are JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else dumps(value)


def dumps(value: Any) -> str:
    """Return JSON in ASCII, which shows invisible characters as escapes. NaN and infinities must be null already."""
    return json.dumps(value, default=str, allow_nan=False)


def _plain_column(column: pa.Array) -> list[Any]:
    try:
        cells = column.to_pylist()
    except (ValueError, OverflowError):  # a date outside Python's range, such as infinity
        try:
            cells = column.cast(pa.string()).to_pylist()
        except pa.ArrowException as error:
            raise FormatError(f"dates beyond year 9999 in a {column.type}: cast it to VARCHAR") from error
    return [_plain(value, column.type) for value in cells]


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Convert a value to JSON's types: timestamps to ISO 8601, bytes to hex, integral decimals to integers.

    Intervals become DuckDB's text, NaN and infinities null.
    """
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if kind.scale == 0 else str(value)
        case datetime() if value.tzinfo:
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {field.name: _plain(value[field.name], field.type) for field in kind}
        case list() if pa.types.is_map(kind):
            return {str(_plain(key, kind.key_type)): _plain(entry, kind.item_type) for key, entry in value}
        case list():
            return [_plain(entry, kind.value_type) for entry in value]
        case pa.MonthDayNano():
            return _interval(*value)
    return str(value)


def _interval(months: int, days: int, nanoseconds: int) -> str:
    years = int(months / 12)  # rounds towards zero, so that the remaining months have the same sign
    counts = ((years, "year"), (months - 12 * years, "month"), (days, "day"))
    parts = [f"{count} {name}{'' if count in (1, -1) else 's'}" for count, name in counts if count]
    seconds, microseconds = divmod(abs(nanoseconds) // 1_000, 1_000_000)
    if seconds or microseconds or not parts:
        sign = "-" if nanoseconds < 0 else ""
        fraction = f".{microseconds:06}".rstrip("0") if microseconds else ""
        parts.append(f"{sign}{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{fraction}")
    return " ".join(parts)


def _short(text: str) -> str:
    text = printable(text[: _MAX_CELL_CHARACTERS + 1])
    return text if len(text) <= _MAX_CELL_CHARACTERS else text[: _MAX_CELL_CHARACTERS - 3] + "..."


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
