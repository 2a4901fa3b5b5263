"""Rows of unchanged cores: found in earlier runs of an audit, kept in staging, copied when the tables are written.

The directory for them in staging has a subdirectory with the tables of each run that is needed: hard links, or copies
from an object store, so that the run may expire. `digests.json` maps each core to its run and its digest there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.collector.status import GOOD
from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError, storage_errors
from pipeline.warehouse.outcome import HOST_TABLES
from pipeline.warehouse.parquet import sha256, sync
from pipeline.warehouse.runs import Manifest, path_of, published_runs
from pipeline.warehouse.store import Folder

_DIGESTS_FILE = "digests.json"
# A carried target has no attempts.
_TABLES = ("targets", *HOST_TABLES)
# Earlier runs to search for the rows of a core: a week of nights and one more, since for a week a core may be left out
# with --limit, or its file system be away. Not more, since each new core is searched for in all of them.
_MAX_RUNS = 8
# Rows of a table to read at a time, which bounds memory.
_BATCH_ROWS = 65_536
# Bytes of a file to copy at a time, which bounds memory; in an object store, each read is a request.
_CHUNK_BYTES = 8 << 20

# The newest good row of each target: its run, and its digest.
Rows = dict[str, tuple[Manifest, str]]
_log = logging.getLogger(__name__)


def newest_rows(root: str | Path, audit: str, targets: set[str]) -> Rows:
    """Return the newest good row of each of these targets in an audit, as far as it has a digest.

    A target that was `bad_output` since that row is left out: the same rows would fail the same check. Runs of another
    schema version are left out. A table that cannot be read costs the rows of its run, not the new run. A manifest that
    cannot be read costs all rows, since its run may be a revision of any other. A warning names the file.
    """
    try:
        runs = published_runs(root)
    except WarehouseError as error:
        _log.warning("%s; unchanged cores are read again", error)
        return {}
    revised_ids = {run.revision_of for run in runs}
    runs = [run for run in reversed(runs) if run.audit == audit and run.run_id not in revised_ids][:_MAX_RUNS]
    rows: dict[str, tuple[Manifest, str | None]] = {}
    for run in runs:
        missing_targets = targets - rows.keys()
        if missing_targets and run.versions["schema"] == schema.VERSION:
            try:
                digests = _digests(run)
            except WarehouseError as error:
                _warn(error)
                continue
            rows |= {target: (run, digest) for target, digest in digests.items() if target in missing_targets}
    return {target: (run, digest) for target, (run, digest) in rows.items() if digest is not None}


def keep_tables(rows: Rows, directory: Path) -> None:
    """Keep the tables of the rows' runs in a new directory, verified against their manifests.

    A run whose tables cannot be read, because they are damaged or expire meanwhile, is left out with a warning.

    :raises OSError: the directory cannot be written.
    """
    directory.mkdir()
    runs = {run.run_id: run for run, _ in rows.values()}
    kept_ids = {run_id for run_id, run in runs.items() if _keep_run(run, directory / run_id)}
    digests = {target: [run.run_id, digest] for target, (run, digest) in rows.items() if run.run_id in kept_ids}
    (directory / _DIGESTS_FILE).write_text(json.dumps(digests), encoding="ascii")
    sync(directory / _DIGESTS_FILE)
    sync(directory)


def read_digests(directory: Path) -> dict[str, tuple[str, str]]:
    """Return the run and the digest of each target for which tables are kept."""
    try:
        digests = json.loads((directory / _DIGESTS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    return {target: (run_id, digest) for target, (run_id, digest) in digests.items()}


class KeptRun:
    """The kept tables of an earlier run, read forward once: targets have to be asked for in order."""

    def __init__(self, directory: Path) -> None:
        self._run_id = directory.name
        self._cursors = {name: _Cursor(_path(directory, name), schema.tables()[name]) for name in _TABLES}

    def rows(self, run_id: str, labels_by_target: Mapping[str, dict[str, str]]) -> dict[str, pa.Table]:
        """Return all rows of some targets by table, as rows of another run with these labels.

        :param labels_by_target: sorted by target.
        """
        tables = {name: cursor.take(list(labels_by_target)) for name, cursor in self._cursors.items()}
        count = len(tables["targets"])
        carried_from = pc.fill_null(tables["targets"]["carried_from"], self._run_id)
        cells: dict[str, list[Any]] = {
            "labels": [labels_by_target[target] for target in tables["targets"]["target"].to_pylist()],
            "attempts": [0] * count,
            "started_at": [None] * count,
            "duration_ms": [None] * count,
        }
        columns = {name: schema.tables()["targets"].by_name[name].array(values) for name, values in cells.items()}
        tables["targets"] = _replace(tables["targets"], {**columns, "carried_from": carried_from})
        return {name: _replace(rows, {"run_id": pa.repeat(run_id, len(rows))}) for name, rows in tables.items()}


class _Cursor:
    """A position in a table that is sorted by target."""

    def __init__(self, path: Path, table: schema.Table) -> None:
        self._schema = table.arrow
        self._spans = _spans(path, table.arrow)
        self._next = next(self._spans, None)

    def take(self, targets: Sequence[str]) -> pa.Table:
        """Return the rows of these targets, which come after those taken before."""
        target_set = set(targets)
        batches = []
        while self._next is not None and self._next[0] <= targets[-1]:
            target, batch = self._next
            if target in target_set:
                batches.append(batch)
            self._next = next(self._spans, None)
        return pa.Table.from_batches(batches, self._schema).combine_chunks()


def _spans(path: Path, arrow: pa.Schema) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield each target with consecutive rows; the rows of one target may come in several batches."""
    with pq.ParquetFile(path) as file:
        for stored_batch in file.iter_batches(_BATCH_ROWS):
            batch = _conform(stored_batch, arrow)
            encoded = pc.run_end_encode(batch.column("target"))
            ends = encoded.run_ends.to_pylist()
            for target, start, end in zip(encoded.values.to_pylist(), [0, *ends], ends, strict=False):
                yield target, batch.slice(start, end - start)


def _conform(batch: pa.RecordBatch, arrow: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the columns of this version; a column that an older one lacks is null."""
    names = set(batch.schema.names)
    arrays = [batch.column(field.name) if field.name in names else pa.nulls(len(batch), field.type) for field in arrow]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow)


def _replace(rows: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    arrays = [columns.get(name, rows[name]) for name in rows.schema.names]
    return pa.Table.from_arrays(arrays, schema=rows.schema)


def _digests(run: Manifest) -> dict[str, str | None]:
    """Return the digest of each good target of a run, and None for those that have to be read again.

    :raises WarehouseError: the table cannot be read; the message names it.
    """
    columns = ["target", "status", "consistency", "input_digest"]
    paths = [path_of(run, file) for file in run.files if file.table == "targets"]
    with storage_errors(run.directory.display_path):
        rows = pa.concat_tables(
            pq.read_table(path, filesystem=run.directory.filesystem, columns=columns) for path in paths
        )
    return {
        target: None if status == "bad_output" else digest
        for target, status, consistency, digest in zip(*(rows[name].to_pylist() for name in columns), strict=True)
        if status == "bad_output" or (status in GOOD and consistency != "raced")
    }


def _keep_run(run: Manifest, directory: Path) -> bool:
    """Keep the tables of a run; return False after a warning if one of them cannot be read or is damaged."""
    directory.mkdir()
    for file in run.files:
        if file.table in _TABLES:
            path = run.directory.display_path_of(file.path)
            try:
                _keep_file(run.directory, file.path, directory / file.path)
                with storage_errors(path):
                    is_intact = sha256(directory / file.path) == file.sha256
                if not is_intact:
                    raise WarehouseError(f"{path}: differs from its manifest")
            except WarehouseError as error:
                _warn(error)
                return False
    sync(directory)
    return True


def _keep_file(source: Folder, name: str, path: Path) -> None:
    """Link or copy a file.

    :raises WarehouseError: the source cannot be read.
    :raises OSError: the copy cannot be written.
    """
    if source.filesystem.type_name == "local":
        with suppress(OSError):  # a file system without hard links; of any other error, the copy finds the side
            os.link(source.file_path(name), path)
            return
    with open(path, "xb") as copy:
        for chunk in _chunks(source, name):
            copy.write(chunk)
    sync(path)


def _chunks(source: Folder, name: str) -> Iterator[bytes]:
    with storage_errors(source.display_path_of(name)), source.open(name) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _warn(error: WarehouseError) -> None:
    _log.warning("%s; the cores of this run are read again", error)


def _path(directory: Path, table: str) -> Path:
    (path,) = directory.glob(f"{table}-*.parquet")
    return path
