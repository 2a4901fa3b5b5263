"""The tables declared in `schemas/`: their Arrow schemas, and checks whether the values of a host fit them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common import data

# Incremented when a table gains a nullable column; any other change requires a new table.
VERSION = 7


@dataclass(frozen=True)
class Type:
    """A column type of `schemas/`: its Arrow type, and the Python type of its JSON values.

    `limits` bounds integers. The limit of a counter is 2^52, the largest physical address space of x86_64 in bytes: no
    counter of a kernel is larger, and a BIGINT sum over thousands of hosts that claim it does not overflow. The limit
    of a timestamp is the end of the year 9999, the last that every reader can show.
    """

    arrow: pa.DataType
    json: type
    limits: tuple[int, int] | None = None


_COUNT = (0, 2**52)
TYPES = {
    "string": Type(pa.string(), str),
    "binary": Type(pa.binary(), str),  # hex digits in JSON
    "bool": Type(pa.bool_(), bool),
    "count": Type(pa.int64(), int, _COUNT),
    "int64": Type(pa.int64(), int, (-(2**52), 2**52)),
    "uint64": Type(pa.uint64(), int, (0, 2**64 - 1)),
    "timestamp": Type(pa.timestamp("us", tz="UTC"), int, (0, 253_402_300_799_999_999)),
    "list<int64>": Type(pa.list_(pa.int64()), list, _COUNT),
    "map<string,string>": Type(pa.map_(pa.string(), pa.string()), dict),
}

# A path has at most 4,096 bytes, and an error is one line; without this limit one host could fill a row group.
MAX_TEXT_CHARS = 65_536
# Lists hold NUMA nodes: MAX_NUMNODES is at most 1 << 10.
MAX_LIST_ELEMENTS = 1_024


class Misfit(Exception):
    """Values do not fit their table; the message names the table and column."""


@dataclass(frozen=True)
class Column:
    """The declaration of a column; the driver writes `driver` columns, a host never does."""

    name: str
    type: str
    meaning: str
    nullable: bool = False
    unit: str | None = None
    source: str | None = None
    values: tuple[str, ...] | None = None
    max: int | None = None
    driver: bool = False

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with meaning, unit and kernel source as metadata."""
        texts = {"meaning": self.meaning, "unit": self.unit, "source": self.source}
        metadata = {key: text for key, text in texts.items() if text}
        return pa.field(self.name, TYPES[self.type].arrow, nullable=self.nullable, metadata=metadata)

    def misfit(self, cells: Sequence[Any]) -> str | None:
        """Return why JSON values do not fit this column, or None if all fit."""
        kind = TYPES[self.type]
        wrong_types = set(map(type, cells)) - {kind.json}
        if type(None) in wrong_types:
            if not self.nullable:
                return "is null"
            wrong_types.discard(type(None))
            cells = [cell for cell in cells if cell is not None]
        if wrong_types:
            return f"holds {min(wrong.__name__ for wrong in wrong_types)}, not {self.type}"
        if kind.json is list:
            if max(map(len, cells), default=0) > MAX_LIST_ELEMENTS:
                return f"holds a list of more than {MAX_LIST_ELEMENTS} elements"
            cells = [element for cell in cells for element in cell]
            if set(map(type, cells)) - {int}:
                return f"holds other elements than {self.type}"
        if kind.json is dict:
            cells = [text for cell in cells for pair in cell.items() for text in pair]
            if set(map(type, cells)) - {str}:
                return f"holds other entries than {self.type}"
        if kind.limits:
            low, high = kind.limits
            return _outside(cells, low, high if self.max is None else self.max)
        return None if kind.json is bool else self._bad_text(cells)

    def _bad_text(self, cells: Sequence[Any]) -> str | None:
        if max(map(len, cells), default=0) > MAX_TEXT_CHARS:
            return f"holds more than {MAX_TEXT_CHARS} characters"
        try:
            "".join(cells).encode()
            if self.type == "binary":
                for cell in cells:
                    bytes.fromhex(cell)
        except UnicodeEncodeError:
            return "holds a lone surrogate"
        except ValueError:
            return "is not hexadecimal"
        if self.values and (unknown := set(cells) - set(self.values)):
            return f"holds {min(unknown)!a:.40}, not one of {', '.join(self.values)}"
        return None

    def fits(self, values: pa.Array) -> bool:
        """Whether `misfit` accepts all of these integers, truth values or texts."""
        limits = TYPES[self.type].limits
        if values.null_count:
            if not self.nullable:
                return False
            values = values.drop_null()
        if limits and len(values):
            low, high = pc.min_max(values).as_py().values()
            return bool(limits[0] <= low and high <= (limits[1] if self.max is None else self.max))
        if self.type == "string" and len(values):
            is_known = not self.values or pc.all(pc.is_in(values, pa.array(self.values))).as_py()
            return bool(is_known and pc.max(pc.utf8_length(values)).as_py() <= MAX_TEXT_CHARS)
        return True

    def array(self, cells: Sequence[Any]) -> pa.Array:
        """Convert JSON values that `misfit` accepts."""
        if self.type == "binary":
            cells = [None if cell is None else bytes.fromhex(cell) for cell in cells]
        return pa.array(cells, type=TYPES[self.type].arrow)

    def cells(self, array: pa.Array) -> list[Any]:
        """Return the JSON values of an Arrow array; the inverse of `array`."""
        if self.type == "timestamp":
            array = array.cast(pa.int64())
        cells: list[Any] = array.to_pylist()
        if self.type == "binary":
            return [None if cell is None else cell.hex() for cell in cells]
        if TYPES[self.type].json is dict:
            return [None if cell is None else dict(cell) for cell in cells]
        return cells


def _outside(cells: Sequence[int], low: int, high: int) -> str | None:
    if cells and not (low <= min(cells) and max(cells) <= high):
        return f"holds a number outside {low} to {high}"
    return None


@dataclass(frozen=True)
class Table:
    """The declaration of a table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """The columns by name, in the order of their declaration."""
        return {column.name: column for column in self.columns}

    @cached_property
    def order(self) -> list[tuple[str, str]]:
        """The columns by which the rows of a run are sorted, in the form that Arrow takes."""
        return [(name, "ascending") for name in ("target", "address") if name in self.by_name]

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, with the meaning of the table and of its fields as metadata."""
        return pa.schema([column.field for column in self.columns], metadata={"meaning": self.meaning})

    def check(self, cells: Mapping[str, Sequence[Any]], stamped_columns: frozenset[str]) -> None:
        """Check that every value fits its column, no column is unknown, and only nullable columns are missing.

        :param cells: JSON values by column, all of one length.
        :param stamped_columns: columns that the driver adds later, not allowed in `cells`.
        :raises Misfit: a column is unknown or missing, or a value does not fit.
        """
        if unknown := [name for name in cells if name not in self.by_name or name in stamped_columns]:
            raise Misfit(f"{self.name} has no column {unknown[0]!a:.60} for a collector to write")
        for column in self.columns:
            if column.name in cells:
                if reason := column.misfit(cells[column.name]):
                    raise Misfit(f"{self.name}.{column.name} {reason}")
            elif not column.nullable and column.name not in stamped_columns:
                raise Misfit(f"{self.name}.{column.name} is missing")


@cache
def tables() -> dict[str, Table]:
    """Return every table of `schemas/` by name."""
    tables_by_name = {}
    for file in sorted(data.path("schemas").glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        columns = tuple(
            Column(name=name, **{**entry, "values": tuple(entry["values"]) if "values" in entry else None})
            for name, entry in content["columns"].items()
        )
        tables_by_name[file.stem] = Table(file.stem, content["meaning"], columns)
    return tables_by_name
