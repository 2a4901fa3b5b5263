"""Published runs: their names, their manifests, and their tables as pyarrow datasets.

A reader only opens files that a manifest lists, and ignores all other files in the warehouse.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial, reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from pipeline.collector.status import GOOD
from pipeline.common import clock
from pipeline.common.errors import AuditError
from pipeline.common.text import joined_lines, quote
from pipeline.warehouse import schema
from pipeline.warehouse.errors import ExpiredError, TornError, WarehouseError, cause, storage_errors
from pipeline.warehouse.files import open_regular, read_json
from pipeline.warehouse.store import INPUTS, MANIFEST, RUN_ID, Folder, Store, open_store

RUN_FILE = "run.json"
MANIFEST_VERSION = 1
# Manifests read at a time; in an object store, each of them costs a round trip.
_PARALLEL_READS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The year 9999, where the times of Python end.
_MAX_MICROSECONDS = 253_370_764_800_000_000
# Bytes of the options or of one target in INPUTS: those of a target are a few hundred.
_MAX_INPUT_BYTES = 1 << 20
# Bytes of INPUTS, unpacked: a hundred times those of 100,000 targets.
_MAX_INPUTS_BYTES = 4 << 30


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_run_id(value: Any) -> bool:
    return isinstance(value, str) and RUN_ID.fullmatch(value) is not None


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_time(value: Any) -> bool:
    """Whether a value is a time with a time zone, as text."""
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


def _are_outcomes(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_versions(value: Any) -> bool:
    """Whether a value has the versions that every manifest has; `inventory` is absent in older ones."""
    kinds = {"tool": _is_text, "schema": _is_count, "model": _optional(_is_count), "inventory": _optional(_is_text)}
    return isinstance(value, dict) and all(check(value.get(name)) for name, check in kinds.items())


# The fields of a manifest and of run.json, which anyone who can write to a warehouse may have changed. Run ids become
# paths. Those that older versions did not write may be absent.
_MANIFEST_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "run_id": _is_run_id,
    "audit": _is_text,
    "started_at": _is_time,
    "finished_at": _is_time,
    "revision_of": _optional(_is_run_id),
    "complete": lambda value: isinstance(value, bool),
    "targets": _is_count,
    "outcomes": _are_outcomes,
    "versions": _are_versions,
    "files": lambda value: isinstance(value, list) and all(isinstance(file, dict) for file in value),
    "inputs_sha256": _optional(_is_text),
    "sequence": _optional(_is_count),
    "publication": _optional(_is_count),
}
_RUN_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "run_id": _is_run_id,
    "audit": _is_text,
    "started_at": lambda value: type(value) is int and abs(value) < _MAX_MICROSECONDS,
    "targets": _is_count,
    "tool_version": _is_text,
    "revision_of": _optional(_is_run_id),
    "sequence": _optional(_is_count),
    "number": _optional(_is_count),
    "model_version": _optional(_is_count),
    "inventory_sha256": _optional(_is_text),
}


def _check_fields(content: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]], run_id: str) -> None:
    """Check the type of each field, and that they are those of this run.

    :raises ValueError: they are not.
    """
    if unknown := content.keys() - fields.keys():
        raise ValueError(f"unknown field {min(unknown)!a:.60}; a newer list-lru-audit may have written it")
    if invalid := [name for name, check in fields.items() if not check(content.get(name))]:
        raise ValueError(f"{invalid[0]} is missing or invalid: {quote(content.get(invalid[0]))}")
    if content["run_id"] != run_id:
        raise ValueError(f"it belongs to run {content['run_id']!a}")


@dataclass(frozen=True)
class File:
    """A Parquet file of a run; `path` is relative to the run."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.table, re.ASCII) or not re.fullmatch(
            rf"{self.table}-\d{{5}}\.parquet", self.path
        ):
            raise ValueError(f"invalid file {self.path!a} of table {self.table!a}")
        if not (_is_count(self.rows) and _is_count(self.bytes) and _is_text(self.sha256)):
            raise TypeError(f"invalid rows, bytes or sha256 of file {self.path!a}")


@dataclass(frozen=True)
class Manifest:
    """The content of a run directory according to its manifest.json, whose presence makes the run published."""

    directory: Folder
    run_id: str
    audit: str
    started_at: datetime
    finished_at: datetime
    revision_of: str | None
    complete: bool
    targets: int
    outcomes: dict[str, int]  # status -> targets
    versions: dict[str, Any]  # tool, schema, model, pyarrow; inventory: its SHA-256, absent in older runs
    files: tuple[File, ...]
    inputs_sha256: str | None = None  # of the file INPUTS; None in older runs
    # Both are None in older runs, see `next_number`: given when the run started, and when its tables were written.
    sequence: int | None = None
    publication: int | None = None

    @property
    def good(self) -> int:
        return sum(self.outcomes.get(status, 0) for status in GOOD)

    @property
    def size_bytes(self) -> int:
        """Size of the tables; the manifest and the inputs are small."""
        return sum(file.bytes for file in self.files)

    def row(self) -> dict[str, Any]:
        """Return the row in the table `runs` as JSON values; the manifest of an older run lacks some of it."""
        statuses = schema.tables()["targets"].by_name["status"].values or ()
        return {
            "run_id": self.run_id,
            "audit": self.audit,
            "started_at": (self.started_at - _EPOCH) // _MICROSECOND,
            "finished_at": (self.finished_at - _EPOCH) // _MICROSECOND,
            "sequence": self.sequence,
            "revision_of": self.revision_of,
            "complete": self.complete,
            "targets": self.targets,
            "good": self.good,
            **{f"status_{status}": self.outcomes.get(status, 0) for status in statuses},
            "tool_version": self.versions["tool"],
            "schema_version": self.versions["schema"],
            "model_version": self.versions["model"],
            "inventory_sha256": self.versions["inventory"],
        }

    def text(self) -> str:
        """Return the manifest as JSON, in the form that `find_manifest` reads."""
        content = {**vars(self), "files": [asdict(file) for file in self.files]}
        del content["directory"]
        for name in ("started_at", "finished_at"):
            content[name] = content[name].isoformat()
        return json.dumps({"manifest_version": MANIFEST_VERSION, **content}, indent=1) + "\n"


def new_run_id() -> str:
    """Return the id of a run that starts now: ``YYYYMMDDTHHMMSSZ-<8 hex>``, UTC."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def published_runs(root: str | Path) -> list[Manifest]:
    """Return the published runs of a warehouse in their order; an empty list if the warehouse does not exist yet.

    :raises WarehouseError: a manifest cannot be read; the message names it.
    """
    store = open_store(root)
    with storage_errors(str(store)), ThreadPoolExecutor(_PARALLEL_READS) as readers:
        manifests = [manifest for manifest in readers.map(partial(find_manifest, store), store.run_names()) if manifest]
    return in_order(manifests)


def in_order(runs: Iterable[Manifest]) -> list[Manifest]:
    """Return runs in the order of the view `_ordered_runs`, the newest last."""
    return sorted(runs, key=lambda run: _place(run.sequence, run.started_at, run.run_id))


def newest_last(runs: Iterable[Manifest]) -> list[Manifest]:
    """Return runs with those dated in the future first, and of the others those of `adhoc`; otherwise in order.

    Of those without a revision, the last one of an audit is in the view `latest_runs`, the last of all in
    `_newest_run`.
    """
    return sorted(in_order(runs), key=lambda run: (not clock.is_in_future(run.started_at), run.audit != "adhoc"))


def _place(sequence: int | None, started_at: datetime, run_id: str) -> tuple[int, bool, datetime, str]:
    """Return a run's place in the order of runs, in which clocks only decide between runs with the same number."""
    return sequence or 0, not clock.is_in_future(started_at), started_at, run_id


def next_number(root: str | Path) -> int:
    """Return the number of a run that starts or is published now: greater than that of each published run.

    No clock has a part in it. A run without a number is older than all that have one. Runs that start, or are
    published, at the same time may get the same number. A damaged manifest is left out.

    :raises OSError: the runs or a manifest cannot be read; it may have the greatest number.
    """
    store = open_store(root)

    def number(run_id: str) -> int:
        with suppress(FileNotFoundError, WarehouseError):
            manifest = _load_manifest(store.run_folder(run_id))
            return max(manifest.sequence or 0, manifest.publication or 0)
        return 0

    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        return 1 + max(readers.map(number, store.run_names()), default=0)


def published_run_ids(root: str | Path, run: str | None) -> list[str]:
    """Return the run_ids of all published runs, or only the one given by a unique prefix or `latest`.

    Manifests are only read for `latest`, so that runs with a damaged manifest are included.
    """
    if run == "latest":
        return [resolve_run(root, run)]
    store = open_store(root)
    with storage_errors(str(store)):
        names = [name for name in store.run_names() if store.is_published(name) or not store.is_withdrawn(name)]
    return names if run is None else [_match(store, run, names, "published run")]


def resolve_run(root: str | Path, run: str, audit: str | None = None) -> str:
    """Return the run_id of the published run, optionally of one audit, given by a unique prefix or `latest`.

    The latest run is the one in the view `_newest_run`: never a run that has a revision, one that is dated in the
    future only if all are, and a run of `adhoc` only if no other audit has runs.
    """
    manifests = [manifest for manifest in published_runs(root) if audit in (None, manifest.audit)]
    revised_ids = {manifest.revision_of for manifest in manifests}
    run_ids = [manifest.run_id for manifest in newest_last(manifests)]
    run_ids.sort(key=lambda run_id: run_id not in revised_ids)
    return _match(open_store(root), run, run_ids, "published run" + (f" of audit {audit}" if audit else ""))


def resolve_removable_run(root: str | Path, run: str) -> str:
    """Return the run_id of the published or staged run given by its id or a unique prefix; never a run just by its age.

    Manifests are not read, so that a run with a damaged one can be removed.
    """
    if run == "latest":
        raise WarehouseError("expire --run takes the id of a run, or a unique prefix; lru-audit runs lists them")
    store = open_store(root)
    return _match(store, run, sorted({*published_run_ids(root, None), *staged_runs(root)}), "run")


def resolve_resumable_run(root: str | Path, run: str) -> str:
    """Return the run_id of the published or staged run given by a unique prefix or `latest`.

    :raises WarehouseError: no run matches, or the run has a revision, published or staged.
    """
    manifests, staged = published_runs(root), staged_runs(root)
    revisions = {manifest.revision_of: manifest.run_id for manifest in manifests}
    revisions |= {staged_run["revision_of"]: run_id for run_id, staged_run in staged.items()}
    # What was published or begun last: a revision is begun later than the run whose place it takes.
    places = {manifest.run_id: (manifest.publication, manifest.started_at) for manifest in manifests}
    places |= _staged_places(staged)
    candidates = [run_id for run_id in _latest_last(places) if run != "latest" or run_id not in revisions]
    run_id = _match(open_store(root), run, candidates, "run")
    if run_id in revisions:
        raise WarehouseError(f"{open_store(root)}: run {run_id} is revised by {revisions[run_id]}: resume that one")
    return run_id


def resolve_staged_run(root: str | Path, run: str) -> str:
    """Return the run_id of the staged run given by a unique prefix or `latest`."""
    run_ids = _latest_last(_staged_places(staged_runs(root)))
    return _match(open_store(root), run, run_ids, "run in staging")


def start_of(staged_run: Mapping[str, Any]) -> datetime:
    """Return the start of a run from its run.json."""
    return datetime.fromtimestamp(staged_run["started_at"] / 1_000_000, UTC)


def _staged_places(staged: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int | None, datetime]]:
    return {run_id: (staged_run.get("number"), start_of(staged_run)) for run_id, staged_run in staged.items()}


def _latest_last(places: Mapping[str, tuple[int | None, datetime]]) -> list[str]:
    """Return run_ids in the order of their numbers, then of their own dates; those dated in the future come first.

    :param places: number and start of each run.
    """

    def order(run_id: str) -> tuple[bool, int, str]:
        number, started_at = places[run_id]
        return not clock.is_in_future(started_at), number or 0, run_id

    return sorted(places, key=order)


def staged_runs(root: str | Path) -> dict[str, dict[str, Any]]:
    """Return the content of run.json of each run in staging by run_id, except runs that are published already."""
    store = open_store(root)
    runs = {}
    with storage_errors(str(store)):
        for directory in staged_directories(store):
            if store.is_published(directory.name):
                continue
            try:
                run = read_run_file(directory)
            except TornError:
                if (directory / RUN_FILE).exists():
                    raise
                continue  # its driver has published it meanwhile, or expire has removed it
            # Its driver removes it from staging after it has published it.
            if not store.is_published(directory.name):
                runs[directory.name] = run
    return runs


def staged_directories(store: Store) -> list[Path]:
    """Return the directories of staged runs; others, such as those of runs that are being removed, are left out."""
    directories = [path.parent for path in store.staging.glob(f"*/{RUN_FILE}")]
    return [path for path in directories if RUN_ID.fullmatch(path.name)]


def read_run_file(directory: Path) -> dict[str, Any]:
    """Return the content of run.json of a run in staging.

    :raises TornError: the file is missing or incomplete.
    :raises WarehouseError: the file cannot be read.
    """
    path = directory / RUN_FILE
    try:
        with open(path, "rb", opener=open_regular) as file:
            run = read_json(file)
        _check_fields(run, _RUN_FIELDS, directory.name)
    except (FileNotFoundError, ValueError) as error:
        remedy = "remove it with: lru-audit expire, and --interrupted-days if it has outcomes"
        raise TornError(f"{path}: not a staged run: {cause(error)}; {remedy}") from error
    except OSError as error:
        raise WarehouseError(f"{path}: {cause(error)}") from error
    return run


def read_inputs(directory: Folder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the options and the targets of a staged or published run.

    :raises TornError: the file is missing or incomplete.
    :raises WarehouseError: the file cannot be read.
    """
    with _open_inputs(directory) as lines:
        options, *targets = lines
    return options, targets


def read_options(directory: Folder) -> dict[str, Any]:
    """Return the options of a staged or published run, without reading its targets."""
    with _open_inputs(directory) as lines:
        (options,) = islice(lines, 1)
    return options


@contextmanager
def _open_inputs(directory: Folder) -> Iterator[Iterator[dict[str, Any]]]:
    try:
        with directory.open(INPUTS) as stream, gzip.open(stream) as file:
            yield map(json.loads, _input_lines(file))
    except (FileNotFoundError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        path = directory.display_path_of(INPUTS)
        raise TornError(f"{path}: cannot be read: {cause(error)}; start a new audit with: lru-audit run") from error
    except OSError as error:
        raise WarehouseError(f"{directory.display_path_of(INPUTS)}: {cause(error)}") from error


def _input_lines(file: gzip.GzipFile) -> Iterator[bytes]:
    """Yield the lines of INPUTS, whose unpacked size anyone may have chosen.

    :raises ValueError: a line or all of them are too large.
    """
    total_bytes = 0
    while line := file.readline(_MAX_INPUT_BYTES):
        total_bytes += len(line)
        if not line.endswith(b"\n") or total_bytes > _MAX_INPUTS_BYTES:
            raise ValueError("a target, or all of them, take more bytes than an inventory can have")
        yield line


def _match(store: Store, run: str, run_ids: Sequence[str], kind: str) -> str:
    """Return the one of `run_ids`, the latest last, given by a unique prefix or `latest`."""
    if not run_ids:
        raise WarehouseError(f"{store}: no {kind}")
    matches = run_ids[-1:] if run == "latest" else [run_id for run_id in run_ids if run and run_id.startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise WarehouseError(f"{store}: run {run!a} is not unique: {', '.join(matches[:5])}")
    raise WarehouseError(f"{store}: no {kind} {run!a}; the newest is {run_ids[-1]}")


def tables(root: str | Path) -> dict[str, ds.UnionDataset]:
    """Return every table over all published runs; a table without files has all columns and no rows."""
    return datasets(published_runs(root))


@contextmanager
def open_tables(root: str | Path, manifests: Sequence[Manifest] | None = None) -> Iterator[dict[str, ds.UnionDataset]]:
    """Yield every table over published runs; an error says so if one of them has expired meanwhile.

    :param manifests: the runs to read, by default all.
    """
    manifests = published_runs(root) if manifests is None else manifests
    try:
        yield datasets(manifests)
    except AuditError as error:
        store = open_store(root)
        if expired_ids := [run.run_id for run in manifests if not store.is_published(run.run_id)]:
            raise ExpiredError(f"{store}: run {expired_ids[0]} was expired meanwhile: run the command again") from error
        raise


def datasets(manifests: Sequence[Manifest]) -> dict[str, ds.UnionDataset]:
    """Return every table over runs of one warehouse, with a child dataset for each schema version.

    All files of a child have the same columns, so that the schema of one applies to all. Each file is a partition of
    its run_id, so that Arrow opens no file of another run than a query selects. A file of `runs` is a partition of
    every column, if the manifest has them all, and need not be opened; times are microseconds there.
    """
    filesystem = manifests[0].directory.filesystem if manifests else fs.LocalFileSystem()
    runs_by_version: dict[int, list[Manifest]] = {}
    for manifest in manifests:
        runs_by_version.setdefault(manifest.versions["schema"], []).append(manifest)
    unions = {}
    for name, table in schema.tables().items():
        children = [_dataset(name, table.arrow, filesystem, runs) for runs in runs_by_version.values() or [[]]]
        unions[name] = ds.UnionDataset(table.arrow, children)
    return unions


def _dataset(
    name: str, arrow: pa.Schema, filesystem: fs.FileSystem, manifests: Sequence[Manifest]
) -> ds.FileSystemDataset:
    """Return one table over the runs of one schema version; a later version may have more tables, which are ignored."""
    files = [
        (path_of(manifest, file), _partition(name, manifest))
        for manifest in manifests
        for file in manifest.files
        if file.table == name
    ]
    return ds.FileSystemDataset.from_paths(
        [path for path, _ in files],
        schema=arrow,
        format=ds.ParquetFileFormat(),
        filesystem=filesystem,
        partitions=[partition for _, partition in files],
    )


def path_of(manifest: Manifest, file: File) -> str:
    """Return the path of a table's file.

    :raises WarehouseError: in a directory, a link, a pipe or a device has been put in its place.
    """
    path = manifest.directory.file_path(file.path)
    if manifest.directory.filesystem.type_name == "local":
        with suppress(OSError):  # the error of who reads it says more
            if not stat.S_ISREG(os.lstat(path).st_mode):
                display_path = manifest.directory.display_path_of(file.path)
                raise WarehouseError(
                    f"{display_path}: not a file; restore it, or remove the run with: "
                    f"lru-audit expire --run {manifest.run_id}"
                )
    return path


def _partition(name: str, manifest: Manifest) -> pc.Expression:
    """Return what a manifest says of every row of a table."""
    if name != "runs" or "inventory" not in manifest.versions:
        return ds.field("run_id") == manifest.run_id
    arrow = schema.tables()[name].arrow
    try:
        return reduce(and_, (_equals(arrow.field(column), cell) for column, cell in manifest.row().items()))
    except (ValueError, TypeError, KeyError) as error:
        path = manifest.directory.display_path_of(MANIFEST)
        raise WarehouseError(f"{path}: invalid manifest: {cause(error)}") from error


@lru_cache(1_024)  # most cells are also those of other runs, and a session over a year of runs has 10,000
def _equals(field: pa.Field, cell: Any) -> pc.Expression:
    column = ds.field(field.name)
    # Reading a timestamp back needs the time zone database, which a confined process cannot open.
    kind = pa.int64() if pa.types.is_timestamp(field.type) else field.type
    return column.is_null() if cell is None else column == pa.scalar(cell, kind)


def read_manifest(root: str | Path, run_id: str) -> Manifest:
    """Return the manifest of a published run."""
    manifest = find_manifest(open_store(root), run_id)
    if manifest is None:
        raise WarehouseError(f"{open_store(root)}: no published run {run_id}")
    return manifest


def find_manifest(store: Store, run_id: str) -> Manifest | None:
    """Return the manifest of a run, or None if the run was withdrawn or is not published yet."""
    try:
        return _load_manifest(store.run_folder(run_id))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and store.is_withdrawn(run_id):
            return None
        raise WarehouseError(f"{error.filename}: {cause(error)}") from error


def _load_manifest(directory: Folder) -> Manifest:
    """Return the manifest in a run's directory.

    :raises OSError: it is missing or cannot be read.
    :raises WarehouseError: its content is invalid.
    """
    path = directory.display_path_of(MANIFEST)
    try:
        with directory.open(MANIFEST) as file:
            content = read_json(file)
        if content.pop("manifest_version") != MANIFEST_VERSION:
            raise ValueError("written by another version of list-lru-audit")
        _check_fields(content, _MANIFEST_FIELDS, directory.name)
        content["files"] = tuple(File(**file) for file in content["files"])
        if len({file.path for file in content["files"]}) < len(content["files"]):
            raise ValueError("a file occurs twice")
        for name in ("started_at", "finished_at"):
            content[name] = datetime.fromisoformat(content[name])
        manifest = Manifest(directory=directory, **content)
    except OSError as error:
        error.filename = path
        raise
    except (ValueError, TypeError, KeyError) as error:
        reason = joined_lines(f"{type(error).__name__}: {error}")
        raise WarehouseError(f"{path}: invalid manifest: {reason}") from error
    return manifest
