"""Rows of one table to one Parquet file, a row group at a time, and onto the disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.warehouse.schema import Table

# DuckDB's own row group size: its scans hand out one row group to a thread at a time.
ROW_GROUP_ROWS = 122_880
# Python values are converted to Arrow in small lots: an int64 takes 8 bytes there and 36 here.
LOT_ROWS = 4_096


class TableWriter:
    """Write rows that come sorted by target; memory is bounded by one row group.

    zstd and dictionaries throughout, but addresses, which never repeat, are DELTA_BINARY_PACKED and, within a target,
    in their order: less than a byte each instead of four, since slabs put neighbours next to each other.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self.rows = 0
        self._columns = table.columns
        self._schema = table.arrow
        self._lot: dict[str, list[Any]] = {column.name: [] for column in table.columns}
        self._group: list[pa.Table] = []
        addresses = [column.name for column in table.columns if column.type == "uint64"]
        self._order = [(name, "ascending") for name in ("target", "address") if name in self._schema.names]
        self._path = path
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=[leaf for leaf in _leaves(self._schema) if leaf not in addresses],
            column_encoding=dict.fromkeys(addresses, "DELTA_BINARY_PACKED"),
            sorting_columns=pq.SortingColumn.from_ordering(self._schema, self._order) if self._order else None,
        )

    def add(self, columns: dict[str, list[Any]]) -> None:
        """Add rows given as JSON values by column; columns left out are null."""
        rows = max(map(len, columns.values()), default=0)
        for name, cells in self._lot.items():
            cells.extend(columns.get(name) or [None] * rows)
        if len(next(iter(self._lot.values()))) >= LOT_ROWS:
            self._convert()

    def add_table(self, rows: pa.Table) -> None:
        """Add rows that are in Arrow already, with the columns of the table in their order."""
        self._group.append(rows)
        if sum(map(len, self._group)) >= ROW_GROUP_ROWS:
            self._write(whole_groups=True)

    def close(self) -> None:
        """Write what remains and the footer, and sync the file."""
        self._convert()
        self._write(whole_groups=False)
        self._writer.close()
        sync(self._path)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError):  # the half-written file stays in staging and is written anew
            self._writer.close()

    def _convert(self) -> None:
        arrays = [column.array(self._lot[column.name]) for column in self._columns]
        for cells in self._lot.values():
            cells.clear()
        self.add_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def _write(self, *, whole_groups: bool) -> None:
        buffered = pa.concat_tables(self._group)
        ready = len(buffered) - len(buffered) % ROW_GROUP_ROWS if whole_groups else len(buffered)
        rows = buffered.slice(0, ready)
        if "address" in self._schema.names:
            rows = rows.combine_chunks().sort_by(self._order)
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._group = [buffered.slice(ready)]
        self.rows += ready


def sha256(path: Path) -> str:
    """Return the checksum of a file as it can be read back, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a directory, which a file's own fsync does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _leaves(schema: pa.Schema) -> list[str]:
    """Return Parquet's paths of the leaf columns, as use_dictionary wants them."""
    leaves = []
    for field in schema:
        if pa.types.is_map(field.type):
            leaves += [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
        elif pa.types.is_list(field.type):
            leaves.append(f"{field.name}.list.element")
        else:
            leaves.append(field.name)
    return leaves
