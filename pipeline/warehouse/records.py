"""The rows of a published run as the records that they were written from, a target at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow.parquet as pq

from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError, storage
from pipeline.warehouse.outcome import Record
from pipeline.warehouse.runs import Manifest

_BATCH_ROWS = 4_096


def run_row(manifest: Manifest) -> dict[str, Any]:
    """Return the row of a published run in `runs`."""
    ((_, columns),) = _parts(manifest, "runs", by="run_id")
    return {name: cells[0] for name, cells in columns.items()}


def records(manifest: Manifest) -> Iterator[tuple[str, Record]]:
    """Yield each target of a published run with its record; memory holds one of them."""
    if manifest.versions["schema"] > schema.VERSION:
        raise WarehouseError(f"{manifest.directory}: written by a newer list-lru-audit; resume it with that")
    tables = {name: _targets(manifest, name) for name in schema.tables() if name != "runs"}
    waiting = {name: next(rows, None) for name, rows in tables.items()}
    while waiting["targets"] is not None:
        target = waiting["targets"][0]
        made = {}
        for name, rows in tables.items():
            found = waiting[name]
            if found is not None and found[0] == target:
                made[name] = found[1]
                waiting[name] = next(rows, None)
        yield target, made


def _targets(manifest: Manifest, table: str) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Yield the rows of each target in one table, by column; files are sorted by target."""
    for target, parts in groupby(_parts(manifest, table), key=itemgetter(0)):
        columns: dict[str, list[Any]] = {}
        for _, part in parts:
            for name, cells in part.items():
                columns.setdefault(name, []).extend(cells)
        yield target, columns


def _parts(manifest: Manifest, table: str, by: str = "target") -> Iterator[tuple[str, dict[str, list[Any]]]]:
    declared = schema.tables()[table].by_name
    directory = manifest.directory
    for name in (file.path for file in manifest.files if file.table == table):
        unread = storage(directory.shown_file(name), "it is read to carry its good rows over")
        with unread, pq.ParquetFile(directory.file(name), filesystem=directory.filesystem) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                columns = {name: declared[name].cells(batch.column(name)) for name in batch.schema.names}
                keys = columns.pop(by)
                columns.pop("run_id", None)
                start = 0
                for key, same in groupby(keys):
                    end = start + sum(1 for _ in same)
                    yield key, {name: cells[start:end] for name, cells in columns.items()}
                    start = end
