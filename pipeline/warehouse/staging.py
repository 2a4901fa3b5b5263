"""One run in the making: a directory `<run_id>` of the store's staging until the store takes what is to be published.

    run.json         what is known before the first outcome; with it the run counts as staged
    inputs.jsonl.gz  what to collect, whatever becomes of the inventory: the options, then one target a line
    key              the secret behind pseudonyms, of a run that has some; gone before the run is published
    outcomes.jsonl   the spool: a line for each outcome as it arrives, [target, what came]; the last of a target counts
    carried          there once the spool has all good rows of the run that it revises, which may expire from then on
    run/             the tables, the inputs and manifest.json; this directory is what is published

A process killed at any moment leaves the spool, from which `Staging(root, run_id)` goes on, and no half run.
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.warehouse import locks, schema
from pipeline.warehouse.errors import WarehouseError, storage
from pipeline.warehouse.outcome import GOOD, Record, escaped, kept, record, refuse
from pipeline.warehouse.parquet import TableWriter, sha256, sync
from pipeline.warehouse.records import records, run_row
from pipeline.warehouse.runs import (
    STAGED,
    File,
    Manifest,
    datasets,
    inputs,
    options,
    read,
    read_staged,
)
from pipeline.warehouse.store import INPUTS, MANIFEST, RUN_ID, at, here
from pipeline.warehouse.totals import totals

SPOOL = "outcomes.jsonl"
CARRIED = "carried"
KEY = "key"
KEY_BYTES = 32

RUN_KEYS = ("run_id", "audit", "started_at", "targets", "tool_version")
OPTIONAL_RUN_KEYS = ("revision_of", "model_version", "inventory_sha256")

# The target at the start of a spool line, without parsing the thousands of rows behind it.
_LINE_START = re.compile(rb'\[("(?:[^"\\]|\\.)*")')

# (target, check, reason) of rows that contradict one another, as `query.check` finds them.
Check = Callable[[Mapping[str, ds.Dataset]], Iterable[tuple[str, str, str]]]


class Staging:
    """The staged run: append outcomes, then publish.

    Memory holds no outcome, and while writing an offset for each target. One process at a time has a run open.
    """

    def __init__(self, root: str | Path, run_id: str) -> None:
        """Open a staged run to go on with it; a line that a killed process left torn is dropped."""
        self.root = root
        self.directory = at(root).staging / run_id
        # What waits in staging is not removed between its being opened and its being locked.
        with self._storage(), locks.making(self.directory.parent):
            self._spool = self._spool_path.open("a+b", buffering=0)
            self._lock()
            self.run = read_staged(self.directory)
            self._spool.truncate(_end_of_last_line(self._spool))
        if self.run["revision_of"] is not None and not (self.directory / CARRIED).exists():
            self._carry_over(self.run["revision_of"])

    @classmethod
    def create(
        cls,
        root: str | Path,
        run: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        targets: Iterable[Mapping[str, Any]] = (),
    ) -> Staging:
        """Stage a new run.

        :param root: the warehouse; made when absent.
        :param run: run_id, audit, started_at (microseconds since the epoch, UTC), targets (count planned) and
            tool_version; optionally model_version, inventory_sha256 and revision_of, a published run whose good
            targets are carried over.
        :param options: with the targets all that it takes to go on with the run; JSON-able.
        """
        if not RUN_ID.fullmatch(run["run_id"]):
            raise WarehouseError(f"{run['run_id']!a} is no run id (YYYYMMDDTHHMMSSZ-<8 hex>)")
        kept = {key: escaped(run[key]) for key in RUN_KEYS}
        kept |= {key: escaped(run.get(key)) for key in OPTIONAL_RUN_KEYS}
        store = at(root)
        directory = store.staging / run["run_id"]
        with storage(directory, "nothing was audited"):
            directory.parent.mkdir(parents=True, exist_ok=True)
            published = set(store.names())
            for other in directory.parent.iterdir():
                if other.name in published and store.has(other.name):  # its driver was killed once it was published
                    shutil.rmtree(other, ignore_errors=True)
        # Until it has a lock of its own nobody takes it for what a killed driver left.
        with storage(directory, "nothing was audited"), locks.making(directory.parent):
            directory.mkdir()
            with gzip.open(directory / INPUTS, "wt", encoding="ascii") as file:
                for line in (options or {}, *targets):
                    file.write(json.dumps(line) + "\n")
            sync(directory / INPUTS)
            unfinished = directory / f"{STAGED}.new"
            unfinished.write_text(json.dumps(kept) + "\n", encoding="utf-8")
            sync(unfinished)
            unfinished.rename(directory / STAGED)
            sync(directory)
            return cls(root, run["run_id"])

    @classmethod
    def revise(cls, root: str | Path, revised: str, **now: Any) -> Staging:
        """Stage a new run of the same targets that replaces a published one.

        :param now: run_id, tool_version and model_version of the new run; it started when the revised one did.
        """
        manifest = read(root, revised)
        return cls.create(root, {**run_row(manifest), **now, "revision_of": revised}, *inputs(manifest.directory))

    def inputs(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the options and the targets that `create` was given."""
        return inputs(here(self.directory))

    def options(self) -> dict[str, Any]:
        """Return the options that `create` was given, without the targets, which may be many."""
        return options(here(self.directory))

    def key(self) -> bytes:
        """Return this run's secret, the same however often it is gone on with; only this user may read it."""
        path = self.directory / KEY
        with self._storage():
            if not path.exists():
                unfinished = path.with_suffix(".new")
                unfinished.unlink(missing_ok=True)
                with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                sync(unfinished)
                unfinished.rename(path)
                sync(self.directory)
            return path.read_bytes()

    def collected(self) -> set[str]:
        """Return the targets that have an outcome."""
        return set(_offsets(self._spool_path))

    def append(self, outcome: Mapping[str, Any]) -> None:
        """Spool one target's outcome; a later one of the same target replaces it.

        What its host sent is checked when the run is written.
        """
        self._append(escaped(outcome["target"]), kept(outcome))

    def write(self) -> None:
        """Make the tables and the manifest from the spool, sorted by target, and sync them."""
        with self._storage():
            os.fsync(self._spool.fileno())
            shutil.rmtree(self._made, ignore_errors=True)
            self._made.mkdir()
            shutil.copy(self.directory / INPUTS, self._made)
            sync(self._made / INPUTS)
            self._write_tables()
            sync(self._made)

    def tables(self) -> dict[str, ds.UnionDataset]:
        """Return the tables that `write` made, for checks."""
        return datasets([self._manifest])

    def publish(self, check: Check) -> Manifest:
        """Write the tables, check them, and have the store take the run: from here on it is immutable.

        A target whose rows contradict one another becomes `bad_output`, so that one host never stops the others.

        :param check: `query.check`; it raises for what is no target's fault.
        """
        self.write()
        if offences := list(check(self.tables())):
            self._reject(offences)
            self.write()
            for target, name, reason in check(self.tables()):
                raise WarehouseError(f"{self.directory}: check {name}: {target!a}: {reason}; nothing was published")
        store = at(self.root)
        published = store.run(self.run["run_id"])
        with self._storage(str(published)):
            (self.directory / KEY).unlink(missing_ok=True)
            store.commit(self._made, published.name)
        shutil.rmtree(self.directory, ignore_errors=True)
        return replace(self._manifest, directory=published)

    @property
    def _made(self) -> Path:
        return self.directory / "run"

    @property
    def _spool_path(self) -> Path:
        return self.directory / SPOOL

    def _storage(self, path: Path | str | None = None) -> AbstractContextManager[None]:
        kept = f"nothing was published, what was collected is kept in {self.directory}"
        return storage(path or self.directory, f"{kept}; go on with: lru-audit resume {self.directory.name}")

    def _lock(self) -> None:
        if not locks.take(self._spool):
            why = "another lru-audit is at work on this run; wait until it has ended"
            raise WarehouseError(f"{self.directory}: {why}")

    def _carry_over(self, run_id: str) -> None:
        """Spool the good targets of a published run as they are, but those that are here already.

        Nothing is collected before, so that all there is to lose with the published run are rows of it.
        """
        here = self.collected()
        try:
            for target, made in records(read(self.root, run_id)):
                if made["targets"]["status"][0] in GOOD and target not in here:
                    self._append(target, made)
        except WarehouseError as error:
            with self._storage():
                if at(self.root).has(run_id):
                    raise
            why = f"run {run_id}, which it revises, was expired before its good rows were carried over"
            raise WarehouseError(f"{self.directory}: {why}; audit anew with: lru-audit run") from error
        with self._storage():
            os.fsync(self._spool.fileno())
            (self.directory / CARRIED).touch()
            sync(self.directory)

    def _append(self, target: str, made: Mapping[str, Any]) -> None:
        rest = memoryview(json.dumps([target, made], separators=(",", ":")).encode() + b"\n")
        with self._storage():
            end = self._spool.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[self._spool.write(rest) :]
            except OSError:  # disk full: no torn line for the next outcome to be joined to
                self._spool.truncate(end)
                raise

    def _reject(self, offences: Iterable[tuple[str, str, str]]) -> None:
        offsets = _offsets(self._spool_path)
        first = {target: (check, reason) for target, check, reason in reversed(list(offences))}
        for target, (check, reason) in first.items():
            with self._spool_path.open("rb") as spool:
                made = _read(spool, offsets[target])
            self._append(target, refuse(made, f"check:{check}", reason))

    def _write_tables(self) -> None:
        outcomes: Counter[str] = Counter()
        declared = schema.tables()
        stamp = self.run["run_id"]
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(TableWriter(self._made / f"{name}-00000.parquet", table))
                for name, table in declared.items()
            }
            spool = stack.enter_context(self._spool_path.open("rb"))
            for target, offset in _offsets(self._spool_path).items():
                made = _read(spool, offset)
                made["targets"] |= totals(made)
                outcomes[made["targets"]["status"][0]] += 1
                for name, columns in made.items():
                    rows = max(map(len, columns.values()))
                    writers[name].add({**columns, "run_id": [stamp] * rows, "target": [target] * rows})
            finished_at = datetime.now(UTC)
            row = self._runs_row(outcomes, finished_at)
            declared["runs"].check(row, frozenset())
            writers["runs"].add(row)
        rows_written = {name: writer.rows for name, writer in writers.items()}
        self._manifest = self._make_manifest(outcomes, finished_at, rows_written)
        (self._made / MANIFEST).write_text(self._manifest.text(), encoding="utf-8")
        sync(self._made / MANIFEST)

    def _runs_row(self, outcomes: Counter[str], finished_at: datetime) -> dict[str, list[Any]]:
        statuses = schema.tables()["targets"].by_name["status"].values or ()
        row = {
            **self.run,
            "finished_at": int(finished_at.timestamp() * 1_000_000),
            "complete": outcomes["not_run"] == 0,
            "good": sum(outcomes[status] for status in GOOD),
            **{f"status_{status}": outcomes[status] for status in statuses},
            "schema_version": schema.VERSION,
        }
        return {name: [value] for name, value in row.items()}

    def _make_manifest(self, outcomes: Counter[str], finished_at: datetime, rows: dict[str, int]) -> Manifest:
        paths = {name: self._made / f"{name}-00000.parquet" for name in rows}
        return Manifest(
            directory=here(self._made),
            run_id=self.run["run_id"],
            audit=self.run["audit"],
            started_at=datetime.fromtimestamp(self.run["started_at"] / 1_000_000, UTC),
            finished_at=finished_at,
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
            },
            inputs_sha256=sha256(self._made / INPUTS),
            files=tuple(
                File(name, path.name, rows[name], path.stat().st_size, sha256(path)) for name, path in paths.items()
            ),
        )


def collected(directory: Path) -> set[str]:
    """Return the targets of a staged run that have an outcome, without opening it."""
    try:
        return set(_offsets(directory / SPOOL))
    except FileNotFoundError:
        return set()


def _offsets(spool_path: Path) -> dict[str, int]:
    """Return where the last record of each target starts in the spool, sorted by target."""
    offsets = {}
    offset = 0
    with spool_path.open("rb") as spool:
        for line in spool:
            if start := _LINE_START.match(line):
                offsets[json.loads(start[1])] = offset
            offset += len(line)
    return dict(sorted(offsets.items()))


def _read(spool: IO[bytes], offset: int) -> Record:
    spool.seek(offset)
    return record(json.loads(spool.readline())[1])


def _end_of_last_line(spool: IO[bytes]) -> int:
    """Return the offset after the last newline."""
    end = spool.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        spool.seek(start)
        newline = spool.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
