"""A run before it is published: the directory `<run_id>` in the staging directory of the store.

    run.json         the columns of `runs` known before the first outcome, and the `number` of a run that begins then; a
                     directory with it is a staged run
    inputs.jsonl.gz  the options, then one target a line: what to collect, even if the inventory has changed
    private.json     fields of targets that are not published, by target, if there are any
    key              the secret for pseudonyms, if the run has them; removed before the run is published
    outcomes.jsonl   the spool: a line for each outcome as it arrives; the last of a target counts. It is
                     [target, entry], a tab, and the host's tables as a JSON object of columns, or nothing
    carried          created once the spool has all good rows of the revised run, which may expire from then on
    earlier/         tables of earlier runs, for the rows of unchanged cores; see `carry`
    run/             the tables, the inputs and manifest.json: the directory that is published

A process that is killed at any moment leaves no partial run, but the spool, from which `Staging(root, run_id)` resumes.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.collector.status import GOOD
from pipeline.warehouse import carry, locks, schema
from pipeline.warehouse.errors import WarehouseError, storage_errors
from pipeline.warehouse.files import open_own
from pipeline.warehouse.outcome import (
    bad_output_record,
    checked_record,
    escape_surrogates,
    record_entry,
    spool_entry,
)
from pipeline.warehouse.parquet import TableWriter, sha256, sync
from pipeline.warehouse.records import records, run_row
from pipeline.warehouse.rows import Spooled, to_tables
from pipeline.warehouse.runs import (
    RUN_FILE,
    File,
    Manifest,
    datasets,
    next_number,
    read_inputs,
    read_manifest,
    read_options,
    read_run_file,
    start_of,
)
from pipeline.warehouse.store import INPUTS, MANIFEST, RUN_ID, local_folder, make_directory, open_store

SPOOL_FILE = "outcomes.jsonl"
CARRIED_FILE = "carried"
EARLIER_DIRECTORY = "earlier"
PRIVATE_FILE = "private.json"
KEY_FILE = "key"
KEY_BYTES = 32

RUN_KEYS = ("run_id", "audit", "started_at", "targets", "tool_version")
OPTIONAL_RUN_KEYS = ("sequence", "revision_of", "model_version", "inventory_sha256")

# Targets whose rows are carried over at a time: some 200,000 rows of hosts with 1,000 mounts.
_CARRIED_TARGETS = 64

# Lines of the spool that are converted at a time: some 250 targets with 240 rows each. As much memory again holds their
# tables.
_BATCH_BYTES = 8 << 20

# Matches the target at the start of a spool line, to avoid parsing the thousands of rows that follow.
_LINE_START = re.compile(rb'\[("(?:[^"\\]|\\.)*")')

# The type of `query.check`, which yields (target, check, reason) for rows that contradict one another.
Check = Callable[[Mapping[str, ds.Dataset]], Iterable[tuple[str, str, str]]]


class Staging:
    """A staged run: append outcomes, then publish.

    Outcomes are not held in memory, only an offset for each target while tables are written. One process at a time can
    have a run open.

    :ivar unpack_directory: where packed cores are unpacked while they are read.
    :ivar unchanged_counts: numbers of unchanged cores in the tables that `write` has written, by the earlier run whose
        rows they have.
    """

    def __init__(self, root: str | Path, run_id: str) -> None:
        """Open a staged run to resume it; an incomplete last line, left by a killed process, is dropped."""
        self.root = root
        store = open_store(root)
        self.directory = store.staging / run_id
        self.unpack_directory = str(store.unpacked.absolute())
        # The shared lock keeps expire from removing the run between the opening of its spool and its lock.
        with self._storage_errors(), locks.shared_lock(self.directory.parent):
            self._spool = open(self._spool_path, "a+b", buffering=0, opener=open_own)  # noqa: SIM115
            self._lock()
            self.run = read_run_file(self.directory)
            self._spool.truncate(_end_of_last_line(self._spool))
            self._earlier_rows = carry.read_digests(self._earlier_directory)
        self.unchanged_counts: Counter[str] = Counter()
        if self.run["revision_of"] is not None and not (self.directory / CARRIED_FILE).exists():
            self._carry_over(self.run["revision_of"])

    @classmethod
    def create(
        cls,
        root: str | Path,
        run: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        targets: Iterable[Mapping[str, Any]] = (),
        *,
        private_fields: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        carries_cores: bool = False,
    ) -> Staging:
        """Stage a new run.

        :param root: the warehouse, created if missing.
        :param run: run_id, audit, started_at (microseconds since the epoch, UTC), targets (count planned) and
            tool_version; optionally model_version, inventory_sha256 and revision_of, a published run whose good
            targets are carried over, with its sequence.
        :param options: what resuming the run needs besides the targets, as JSON values.
        :param private_fields: fields that replace those of `targets` while the run is staged, by target. Only this user
            can read their file, and they are not published.
        :param carries_cores: whether to keep the newest good rows of its cores from earlier runs of the audit, for the
            cores that have not changed.
        """
        if not RUN_ID.fullmatch(run["run_id"]):
            raise WarehouseError(f"invalid run id {run['run_id']!a}; expected YYYYMMDDTHHMMSSZ-<8 hex>")
        content = {key: escape_surrogates(run[key]) for key in RUN_KEYS}
        content |= {key: escape_surrogates(run.get(key)) for key in OPTIONAL_RUN_KEYS}
        targets = list(targets)
        store = open_store(root)
        directory = store.staging / run["run_id"]
        earlier_rows: carry.Rows = {}
        if carries_cores:
            core_names = {target["name"] for target in targets if target["kind"] == "vmcore"}
            earlier_rows = carry.newest_rows(root, run["audit"], core_names)
        with storage_errors(directory, "nothing was audited"):
            content["number"] = next_number(root)
            if content["revision_of"] is None:
                content["sequence"] = content["number"]
            make_directory(directory.parent)
            run_names = set(store.run_names())
            for path in directory.parent.iterdir():
                if path.name in run_names and store.is_published(path.name):  # its driver was killed after publishing
                    shutil.rmtree(path, ignore_errors=True)
        # The shared lock keeps expire from removing the directory as a leftover before the run has its own lock.
        with storage_errors(directory, "nothing was audited"), locks.shared_lock(directory.parent):
            directory.mkdir()
            try:
                with gzip.open(directory / INPUTS, "wt", encoding="ascii") as file:
                    for line in (options or {}, *targets):
                        file.write(json.dumps(line) + "\n")
                sync(directory / INPUTS)
                if private_fields:
                    with _create_private(directory / PRIVATE_FILE) as private_file:
                        private_file.write(json.dumps(private_fields).encode())
                    sync(directory / PRIVATE_FILE)
                if earlier_rows:
                    carry.keep_tables(earlier_rows, directory / EARLIER_DIRECTORY)
                new_file = directory / f"{RUN_FILE}.new"
                new_file.write_text(json.dumps(content) + "\n", encoding="utf-8")
                sync(new_file)
                new_file.rename(directory / RUN_FILE)
                sync(directory)
                sync(directory.parent)
            except BaseException:  # what is left would hold the space of a full disk, and could be resumed
                shutil.rmtree(directory, ignore_errors=True)
                raise
            return cls(root, run["run_id"])

    @classmethod
    def revise(cls, root: str | Path, revised_run_id: str, **new_run: Any) -> Staging:
        """Stage a new run of the same targets that replaces a published run.

        :param new_run: run_id, tool_version and model_version of the new run; its place in the order of runs is that of
            the revised run.
        """
        manifest = read_manifest(root, revised_run_id)
        run = {**run_row(manifest), **new_run, "revision_of": revised_run_id}
        return cls.create(root, run, *read_inputs(manifest.directory))

    def inputs(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the options and the targets that were passed to `create`, with their private fields."""
        options, targets = read_inputs(local_folder(self.directory))
        path = self.directory / PRIVATE_FILE
        with self._storage_errors():
            private_fields = {}
            if path.exists():
                with _open_own(path) as file:
                    private_fields = json.load(file)
        return options, [target | private_fields.get(target["name"], {}) for target in targets]

    def options(self) -> dict[str, Any]:
        """Return the options that were passed to `create`, without reading the targets, which may be many."""
        return read_options(local_folder(self.directory))

    def key(self) -> bytes:
        """Return the run's secret, created on the first call; only this user can read its file."""
        path = self.directory / KEY_FILE
        with self._storage_errors():
            if not path.exists():
                new_file = path.with_suffix(".new")
                new_file.unlink(missing_ok=True)
                with _create_private(new_file) as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                sync(new_file)
                new_file.rename(path)
                sync(self.directory)
            with _open_own(path) as key_file:
                return key_file.read(KEY_BYTES)

    def finished_targets(self) -> set[str]:
        """Return the targets that have an outcome."""
        with self._storage_errors():
            return set(_offsets(self._spool_path))

    def known_digests(self) -> dict[str, str]:
        """Return the digests of the cores whose rows can be carried over, by target."""
        return {target: digest for target, (_, digest) in self._earlier_rows.items()}

    def append(self, outcome: Mapping[str, Any]) -> None:
        """Spool the outcome of a target; a later outcome of the same target replaces it.

        What the host sent is checked when the tables are written. The rows of an `unchanged` core are copied then.
        """
        entry, tables = spool_entry(outcome)
        if outcome.get("unchanged"):
            entry["earlier_run"], _ = self._earlier_rows[outcome["target"]]
        self._append(escape_surrogates(outcome["target"]), entry, tables)

    def write(self) -> None:
        """Write the tables, sorted by target, and the manifest from the spool, and sync them."""
        with self._storage_errors():
            os.fsync(self._spool.fileno())
            shutil.rmtree(self._run_directory, ignore_errors=True)
            self._run_directory.mkdir()
            shutil.copy(self.directory / INPUTS, self._run_directory)
            sync(self._run_directory / INPUTS)
            self._write_tables()
            sync(self._run_directory)

    def tables(self) -> dict[str, ds.UnionDataset]:
        """Return the tables that `write` has written, for checks."""
        return datasets([self._manifest])

    def publish(self, check: Check) -> Manifest:
        """Write the tables, check them, and publish the run in the store; from then on it is immutable.

        A target whose rows contradict one another becomes `bad_output`, so that one host cannot block the others.

        :param check: `query.check`; it raises for an error that no single target has caused.
        """
        self.write()
        if violations := list(check(self.tables())):
            self._reject(violations)
            self.write()
            for target, name, reason in check(self.tables()):
                raise WarehouseError(f"{self.directory}: check {name}: {target!a}: {reason}; nothing was published")
        store = open_store(self.root)
        run_folder = store.run_folder(self.run["run_id"])
        with self._storage_errors(str(run_folder)):
            (self.directory / KEY_FILE).unlink(missing_ok=True)
            store.commit(self._run_directory, run_folder.name)
        shutil.rmtree(self.directory, ignore_errors=True)
        return replace(self._manifest, directory=run_folder)

    @property
    def _run_directory(self) -> Path:
        return self.directory / "run"

    @property
    def _earlier_directory(self) -> Path:
        return self.directory / EARLIER_DIRECTORY

    @property
    def _spool_path(self) -> Path:
        return self.directory / SPOOL_FILE

    def _storage_errors(self, path: Path | str | None = None) -> AbstractContextManager[None]:
        status = f"nothing was published, collected targets are kept in {self.directory}"
        remedy = f"resume it with: lru-audit resume {self.directory.name}"
        return storage_errors(path or self.directory, f"{status}; {remedy}")

    def _lock(self) -> None:
        if not locks.try_lock(self._spool):
            raise WarehouseError(f"{self.directory}: another lru-audit has this run open; wait until it ends")

    def _carry_over(self, run_id: str) -> None:
        """Spool the good targets of a published run unchanged, except those that are in the spool already.

        This precedes any collection, so that only rows of the published run are lost if it expires meanwhile.
        """
        finished_targets = self.finished_targets()
        try:
            for target, record in records(read_manifest(self.root, run_id)):
                if record["targets"]["status"][0] in GOOD and target not in finished_targets:
                    self._append(target, *record_entry(record))
        except WarehouseError as error:
            with self._storage_errors():
                if open_store(self.root).is_published(run_id):
                    raise
            cause = f"run {run_id}, which it revises, was expired before its good rows were carried over"
            raise WarehouseError(f"{self.directory}: {cause}; start a new audit with: lru-audit run") from error
        with self._storage_errors():
            os.fsync(self._spool.fileno())
            (self.directory / CARRIED_FILE).touch()
            sync(self.directory)

    def _append(self, target: str, entry: Mapping[str, Any], tables: bytes = b"") -> None:
        start = json.dumps([target, entry], separators=(",", ":")).encode()
        data = memoryview(b"".join((start, b"\t", tables, b"\n")))
        with self._storage_errors():
            end = self._spool.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[self._spool.write(data) :]
            except OSError:  # disk full: the next outcome must not continue an incomplete line
                self._spool.truncate(end)
                raise

    def _reject(self, violations: Iterable[tuple[str, str, str]]) -> None:
        offsets = _offsets(self._spool_path)
        first_violations = {target: (check, reason) for target, check, reason in reversed(list(violations))}
        for target, (check, reason) in first_violations.items():
            with _open_own(self._spool_path) as spool:
                spooled = _read_outcome(spool, offsets[target])
            record = checked_record(spooled.entry, spooled.tables)
            self._append(target, bad_output_record(record, f"check:{check}", reason))

    def _write_tables(self) -> None:
        outcomes: Counter[str] = Counter()
        self.unchanged_counts.clear()
        tables = schema.tables()
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(TableWriter(self._run_directory / f"{name}-00000.parquet", table))
                for name, table in tables.items()
            }
            spool = stack.enter_context(_open_own(self._spool_path))
            writer_thread = stack.enter_context(ThreadPoolExecutor(1))
            pending_write: Future[None] | None = None
            for rows_by_table in self._rows(spool):
                outcomes.update(rows_by_table["targets"]["status"].to_pylist())
                if pending_write:
                    pending_write.result()
                pending_write = writer_thread.submit(_add_rows, writers, rows_by_table)
            if pending_write:
                pending_write.result()
            manifest = self._make_manifest(outcomes)
            row = {name: [value] for name, value in manifest.row().items()}
            tables["runs"].check(row, frozenset())
            writers["runs"].add(row)
        paths = {name: self._run_directory / f"{name}-00000.parquet" for name in tables}
        files = (
            File(name, path.name, writers[name].rows, path.stat().st_size, sha256(path)) for name, path in paths.items()
        )
        self._manifest = replace(manifest, files=tuple(files))
        (self._run_directory / MANIFEST).write_text(self._manifest.text(), encoding="utf-8")
        sync(self._run_directory / MANIFEST)

    def _rows(self, spool: IO[bytes]) -> Iterator[dict[str, pa.Table]]:
        """Yield the rows of all outcomes by table, in the order of the files, some targets at a time."""
        earlier_runs: dict[str, carry.KeptRun] = {}
        outcomes = (_read_outcome(spool, offset) for offset in _offsets(self._spool_path).values())
        for earlier_run_id, group in groupby(outcomes, key=lambda outcome: outcome.entry.get("earlier_run")):
            if earlier_run_id is None:
                for batch in _batches(group):
                    yield to_tables(batch, self.run["run_id"])
                continue
            if earlier_run_id not in earlier_runs:
                earlier_runs[earlier_run_id] = carry.KeptRun(self._earlier_directory / earlier_run_id)
            while chunk := list(islice(group, _CARRIED_TARGETS)):
                labels_by_target = {outcome.target: outcome.entry["targets"]["labels"][0] for outcome in chunk}
                yield earlier_runs[earlier_run_id].rows(self.run["run_id"], labels_by_target)
                self.unchanged_counts[earlier_run_id] += len(chunk)

    def _make_manifest(self, outcomes: Counter[str]) -> Manifest:
        """Return the manifest of a run that is finished now, without its files."""
        return Manifest(
            directory=local_folder(self._run_directory),
            run_id=self.run["run_id"],
            audit=self.run["audit"],
            started_at=start_of(self.run),
            finished_at=datetime.now(UTC),
            revision_of=self.run["revision_of"],
            complete=outcomes["not_run"] == 0,
            targets=self.run["targets"],
            outcomes=dict(sorted(outcomes.items())),
            versions={
                "tool": self.run["tool_version"],
                "schema": schema.VERSION,
                "model": self.run["model_version"],
                "python": platform.python_version(),
                "pyarrow": pa.__version__,
                "inventory": self.run["inventory_sha256"],
            },
            files=(),
            inputs_sha256=sha256(self._run_directory / INPUTS),
            sequence=self.run.get("sequence"),  # an older version may have staged the run
            publication=next_number(self.root),
        )


def finished_targets(directory: Path) -> set[str]:
    """Return the targets of a staged run that have an outcome, without opening the run."""
    path = directory / SPOOL_FILE
    with storage_errors(path), suppress(FileNotFoundError):
        return set(_offsets(path))
    return set()


def _create_private(path: Path) -> IO[bytes]:
    """Create a file that only this user can read."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _open_own(path: Path) -> IO[bytes]:
    return open(path, "rb", opener=open_own)


def _offsets(spool_path: Path) -> dict[str, int]:
    """Return the offset of the last spool line of each target, sorted by target."""
    offsets = {}
    offset = 0
    with _open_own(spool_path) as spool:
        for line in spool:
            start = _LINE_START.match(line)
            # A power cut, or a disk that failed at fsync, leaves zeros: that target is collected again.
            if start and b"\0" not in line:
                offsets[json.loads(start[1])] = offset
            offset += len(line)
    return dict(sorted(offsets.items()))


def _add_rows(writers: Mapping[str, TableWriter], rows_by_table: Mapping[str, pa.Table]) -> None:
    for name, rows in rows_by_table.items():
        writers[name].add_table(rows)


def _batches(outcomes: Iterable[Spooled]) -> Iterator[list[Spooled]]:
    """Yield consecutive outcomes, _BATCH_BYTES of the spool at a time."""
    batch: list[Spooled] = []
    batch_bytes = 0
    for outcome in outcomes:
        batch.append(outcome)
        batch_bytes += outcome.line_bytes
        if batch_bytes >= _BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def _read_outcome(spool: IO[bytes], offset: int) -> Spooled:
    spool.seek(offset)
    line = spool.readline()
    start, _, tables = line.rstrip(b"\n").partition(b"\t")
    target, entry = json.loads(start)
    return Spooled(target, entry, tables, len(line))


def _end_of_last_line(spool: IO[bytes]) -> int:
    """Return the offset after the last newline of the spool."""
    end = spool.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        spool.seek(start)
        newline = spool.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
