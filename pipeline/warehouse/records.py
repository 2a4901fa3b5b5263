"""The rows of a published run, converted back to the records that they were written from, one target at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow.parquet as pq

from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError, storage_errors
from pipeline.warehouse.outcome import Record
from pipeline.warehouse.runs import Manifest, path_of

# Rows that are converted to Python objects at a time, to bound memory.
_BATCH_ROWS = 4_096
_CONSEQUENCE = "its good rows were not carried over"


def run_row(manifest: Manifest) -> dict[str, Any]:
    """Return the row of a published run in the table `runs`."""
    ((_, columns),) = _rows_by_key(manifest, "runs", key_column="run_id")
    return {name: cells[0] for name, cells in columns.items()}


def records(manifest: Manifest) -> Iterator[tuple[str, Record]]:
    """Yield each target of a published run with its record, holding one record in memory at a time."""
    if manifest.versions["schema"] > schema.VERSION:
        raise WarehouseError(f"{manifest.directory}: written by a newer list-lru-audit; resume it with that version")
    tables = {name: _rows_by_target(manifest, name) for name in schema.tables() if name != "runs"}
    heads = {name: next(rows, None) for name, rows in tables.items()}
    while heads["targets"] is not None:
        target = heads["targets"][0]
        record = {}
        for name, rows in tables.items():
            head = heads[name]
            if head is not None and head[0] == target:
                record[name] = head[1]
                heads[name] = next(rows, None)
        yield target, record


def _rows_by_target(manifest: Manifest, table: str) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Yield each target with its rows in one table, as cells by column; the files are sorted by target."""
    for target, chunks in groupby(_rows_by_key(manifest, table), key=itemgetter(0)):
        columns: dict[str, list[Any]] = {}
        for _, chunk in chunks:
            for name, cells in chunk.items():
                columns.setdefault(name, []).extend(cells)
        yield target, columns


def _rows_by_key(
    manifest: Manifest, table: str, key_column: str = "target"
) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Yield each key with consecutive rows, as cells by column; rows of one key may come in several chunks."""
    columns_by_name = schema.tables()[table].by_name
    directory = manifest.directory
    for file in (file for file in manifest.files if file.table == table):
        display_path = directory.display_path_of(file.path)
        read_errors = storage_errors(display_path, _CONSEQUENCE)
        with read_errors, pq.ParquetFile(path_of(manifest, file), filesystem=directory.filesystem) as parquet:
            if directory.sha256(file.path) != file.sha256:  # the new run would have a checksum of the damaged rows
                raise WarehouseError(f"{display_path}: differs from its manifest; {_CONSEQUENCE}")
            for batch in parquet.iter_batches(_BATCH_ROWS):
                columns = {name: columns_by_name[name].cells(batch.column(name)) for name in batch.schema.names}
                keys = columns.pop(key_column)
                columns.pop("run_id", None)
                start = 0
                for key, group in groupby(keys):
                    end = start + sum(1 for _ in group)
                    yield key, {name: cells[start:end] for name, cells in columns.items()}
                    start = end
