"""A Parquet writer for one table, which holds one row group in memory; checksums and fsync(2) of files."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.warehouse.files import open_regular
from pipeline.warehouse.schema import Table

# DuckDB's own default: its scans give each thread one row group at a time.
ROW_GROUP_ROWS = 122_880
# Rows held as Python objects before they are converted to Arrow, where an int64 takes 8 bytes instead of 36.
_BATCH_ROWS = 4_096


class TableWriter:
    """Writes rows that arrive in the order of the table; memory is bounded by one row group.

    Every column is compressed with zstd and has a dictionary, except addresses, which never repeat. Addresses are
    DELTA_BINARY_PACKED and sorted within a target: less than a byte each instead of four, since objects of a slab are
    next to each other.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self.rows = 0
        self._columns = table.columns
        self._schema = table.arrow
        self._batch: dict[str, list[Any]] = {column.name: [] for column in table.columns}
        self._row_group: list[pa.Table] = [table.arrow.empty_table()]
        addresses = [column.name for column in table.columns if column.type == "uint64"]
        # Open while the file is written: fsync(2) reports the errors of writing since its descriptor was opened.
        self._file = open(path, "xb")  # noqa: SIM115
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=[leaf for leaf in _leaf_paths(self._schema) if leaf not in addresses],
            column_encoding=dict.fromkeys(addresses, "DELTA_BINARY_PACKED"),
            sorting_columns=pq.SortingColumn.from_ordering(self._schema, table.order) if table.order else None,
        )

    def add(self, columns: dict[str, list[Any]]) -> None:
        """Add rows as JSON values by column; a missing column is null."""
        rows = max(map(len, columns.values()), default=0)
        for name, cells in self._batch.items():
            cells.extend(columns.get(name) or [None] * rows)
        if len(next(iter(self._batch.values()))) >= _BATCH_ROWS:
            self._convert()

    def add_table(self, rows: pa.Table) -> None:
        """Add rows in Arrow's form, with the columns of the table in their order."""
        self._convert()
        self._append(rows)

    def close(self) -> None:
        """Write the remaining rows and the footer, and sync the file."""
        self._convert()
        self._write(only_full_groups=False)
        self._writer.close()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError):  # the incomplete file stays in staging and is written again
            self._writer.close()
        with suppress(OSError):
            self._file.close()

    def _convert(self) -> None:
        """Convert the rows that were added as JSON values, so that other rows can follow them."""
        if not any(self._batch.values()):
            return
        arrays = [column.array(self._batch[column.name]) for column in self._columns]
        for cells in self._batch.values():
            cells.clear()
        self._append(pa.Table.from_arrays(arrays, schema=self._schema))

    def _append(self, rows: pa.Table) -> None:
        self._row_group.append(rows)
        if sum(map(len, self._row_group)) >= ROW_GROUP_ROWS:
            self._write(only_full_groups=True)

    def _write(self, *, only_full_groups: bool) -> None:
        buffer = pa.concat_tables(self._row_group)
        count = len(buffer) - len(buffer) % ROW_GROUP_ROWS if only_full_groups else len(buffer)
        self._writer.write_table(buffer.slice(0, count), row_group_size=ROW_GROUP_ROWS)
        self._row_group = [buffer.slice(count)]
        self.rows += count


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read back from the file system, in hex."""
    with open(path, "rb", opener=open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make the content of a file durable, or the names in a directory, which fsync(2) of the files does not cover.

    Some FUSE and SMB file systems give EINVAL for a directory: there its names are as durable as they can be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the Parquet paths of the leaf columns, the form that `use_dictionary` takes."""
    paths = []
    for field in schema:
        if pa.types.is_map(field.type):
            paths += [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
        elif pa.types.is_list(field.type):
            paths.append(f"{field.name}.list.element")
        else:
            paths.append(field.name)
    return paths
