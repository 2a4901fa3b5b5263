"""Published runs: their names, their manifests, and their tables as pyarrow datasets.

Only files that a manifest lists exist for a reader; whatever else lies in the warehouse is never seen.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from pipeline.collector.status import GOOD
from pipeline.common.errors import AuditError
from pipeline.warehouse import schema
from pipeline.warehouse.errors import TornError, WarehouseError, cause
from pipeline.warehouse.store import INPUTS, MANIFEST, Folder, Store, at, reachable

STAGED = "run.json"
MANIFEST_VERSION = 1
# Manifests of an object store that are asked for at a time.
_PARALLEL = 16


@dataclass(frozen=True)
class File:
    """One Parquet file of a run, its path relative to the run."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{re.escape(self.table)}-\d{{5}}\.parquet", self.path):
            raise ValueError(f"{self.path!a} is no file of table {self.table!a}")


@dataclass(frozen=True)
class Manifest:
    """What a run directory holds, as its manifest.json says; it is the commit of the run."""

    directory: Folder
    run_id: str
    audit: str
    started_at: datetime
    finished_at: datetime
    revision_of: str | None
    complete: bool
    targets: int
    outcomes: dict[str, int]  # status -> targets
    versions: dict[str, Any]  # tool, schema, model, pyarrow
    files: tuple[File, ...]
    inputs_sha256: str | None = None  # of INPUTS; older runs have none

    @property
    def good(self) -> int:
        return sum(self.outcomes.get(status, 0) for status in GOOD)

    @property
    def size_bytes(self) -> int:
        """Of the tables; the manifest and the inputs are small."""
        return sum(file.bytes for file in self.files)

    def text(self) -> str:
        """Return the manifest as the JSON that `read` takes."""
        content = {**vars(self), "files": [asdict(file) for file in self.files]}
        del content["directory"]
        for name in ("started_at", "finished_at"):
            content[name] = content[name].isoformat()
        return json.dumps({"manifest_version": MANIFEST_VERSION, **content}, indent=1) + "\n"


def new_run_id() -> str:
    """Return a name for a run that starts now: ``YYYYMMDDTHHMMSSZ-<8 hex>``, UTC."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def runs(root: str | Path) -> list[Manifest]:
    """Return the published runs of a warehouse, the newest last; none when there is no warehouse yet.

    Raises WarehouseError naming the manifest that cannot be read.
    """
    store = at(root)
    with reachable(store), ThreadPoolExecutor(_PARALLEL) as readers:
        found = readers.map(lambda name: find(store, name), store.names())
        present = [manifest for manifest in found if manifest]
    return sorted(present, key=lambda manifest: (manifest.started_at, manifest.run_id))


def verifiable(root: str | Path, run: str | None) -> list[str]:
    """Return the run_ids of all published runs, or the one that a unique prefix or `latest` means.

    No manifest is read: there are runs that cannot be.
    """
    store = at(root)
    with reachable(store):
        names = [name for name in store.names() if store.has(name) or not store.withdrawn(name)]
    return names if run is None else [_match(store, run, names, "published run")]


def resolve(root: str | Path, run: str, audit: str | None = None) -> str:
    """Return the run_id that a unique prefix or `latest` means among the published runs, or among those of an audit.

    The latest is what the view `newest_run` says: no run that another one revises, and of `adhoc` only where no audit
    has a name.
    """
    known = [manifest for manifest in runs(root) if audit in (None, manifest.audit)]
    revised = {manifest.revision_of for manifest in known}
    known.sort(key=lambda manifest: (manifest.run_id not in revised, manifest.audit != "adhoc"))
    names = [manifest.run_id for manifest in known]
    return _match(at(root), run, names, "published run" + (f" of audit {audit}" if audit else ""))


def resumable(root: str | Path, run: str) -> str:
    """Return the run_id that a unique prefix or `latest` means among the published runs and those in staging.

    Raises WarehouseError when there is none and for a run that another one revises, published or not.
    """
    published = {manifest.run_id: manifest.revision_of for manifest in runs(root)}
    revising = published | {run_id: run["revision_of"] for run_id, run in staged(root).items()}
    revisions = {revised: run_id for run_id, revised in revising.items()}
    known = sorted(revising)
    run_id = _match(at(root), run, [one for one in known if run != "latest" or one not in revisions], "run")
    if run_id in revisions:
        raise WarehouseError(f"{at(root)}: run {run_id} is revised by {revisions[run_id]}: resume that one")
    return run_id


def unpublished(root: str | Path, run: str) -> str:
    """Return the run_id that a unique prefix or `latest` means among the runs in staging."""
    return _match(at(root), run, sorted(staged(root)), "run in staging")


def staged(root: str | Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each run that waits in staging; one that is published only awaits its removal."""
    store = at(root)
    directories = [path.parent for path in store.staging.glob(f"*/{STAGED}")]
    with reachable(store):
        return {path.name: read_staged(path) for path in directories if not store.has(path.name)}


def read_staged(directory: Path) -> dict[str, Any]:
    """Return what is known of a run in staging.

    Raises TornError where that is not there or not whole, WarehouseError where it cannot be read.
    """
    path = directory / STAGED
    try:
        run: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError) as error:
        remedy = "lru-audit expire removes it; if outcomes are spooled there, only with --interrupted-days"
        raise TornError(f"{path}: not a staged run: {cause(error)}; {remedy}") from error
    except OSError as error:
        raise WarehouseError(f"{path}: {cause(error)}") from error
    return run


def inputs(directory: Folder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the options and the targets of a run, staged or published.

    Raises TornError where they are not there or not whole, WarehouseError where they cannot be read.
    """
    with _inputs(directory) as lines:
        options, *targets = lines
    return options, targets


def options(directory: Folder) -> dict[str, Any]:
    """Return the options alone."""
    with _inputs(directory) as lines:
        (first,) = islice(lines, 1)
    return first


@contextmanager
def _inputs(directory: Folder) -> Iterator[Iterator[dict[str, Any]]]:
    try:
        with directory.open(INPUTS) as stored, gzip.open(stored, "rt", encoding="ascii") as file:
            yield map(json.loads, file)
    except (FileNotFoundError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        path = directory.shown_file(INPUTS)
        raise TornError(f"{path}: cannot be read: {cause(error)}; audit it anew with: lru-audit run") from error
    except OSError as error:
        raise WarehouseError(f"{directory.shown_file(INPUTS)}: {cause(error)}") from error


def _match(store: Store, run: str, known: Sequence[str], what: str) -> str:
    """Return the one of `known`, the latest last, that a unique prefix or `latest` means."""
    if not known:
        raise WarehouseError(f"{store}: no {what}")
    matching = known[-1:] if run == "latest" else [run_id for run_id in known if run and run_id.startswith(run)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise WarehouseError(f"{store}: run {run!a} is not unique: {', '.join(matching[:5])}")
    raise WarehouseError(f"{store}: no {what} {run!a}; the newest is {known[-1]}")


def tables(root: str | Path) -> dict[str, ds.UnionDataset]:
    """Return every table over all published runs, a table without files too (0 rows, all columns)."""
    return datasets(runs(root))


@contextmanager
def reading(root: str | Path, chosen: Sequence[Manifest] | None = None) -> Iterator[dict[str, ds.UnionDataset]]:
    """Yield every table over published runs; what fails because one of those was expired says so instead.

    :param chosen: these of the runs, default all.
    """
    found = runs(root) if chosen is None else chosen
    try:
        yield datasets(found)
    except AuditError as error:
        if gone := [one.run_id for one in found if not at(root).has(one.run_id)]:
            raise WarehouseError(f"{at(root)}: run {gone[0]} was expired meanwhile: run the command again") from error
        raise


def datasets(manifests: Sequence[Manifest]) -> dict[str, ds.UnionDataset]:
    """Return every table over these runs, which are of one warehouse: a child for each schema version.

    All files of a child have the same columns, so that one stands for all. Each is known to be of its run: Arrow opens
    none where another run is asked for.
    """
    filesystem = manifests[0].directory.filesystem if manifests else fs.LocalFileSystem()
    versions: dict[int, list[Manifest]] = {}
    for manifest in manifests:
        versions.setdefault(manifest.versions["schema"], []).append(manifest)
    found = {}
    for name, table in schema.tables().items():
        children = [_files(name, table.arrow, filesystem, of_version) for of_version in versions.values() or [[]]]
        found[name] = ds.UnionDataset(table.arrow, children)
    return found


def _files(
    name: str, arrow: pa.Schema, filesystem: fs.FileSystem, manifests: Sequence[Manifest]
) -> ds.FileSystemDataset:
    """Return the files of one table. A later schema version may have tables that this one does not know."""
    files = [
        (one.directory.file(file.path), one.run_id) for one in manifests for file in one.files if file.table == name
    ]
    return ds.FileSystemDataset.from_paths(
        [file for file, _ in files],
        schema=arrow,
        format=ds.ParquetFileFormat(),
        filesystem=filesystem,
        partitions=[ds.field("run_id") == run_id for _, run_id in files],
    )


def read(root: str | Path, run_id: str) -> Manifest:
    """Return the manifest of one published run."""
    found = find(at(root), run_id)
    if found is None:
        raise WarehouseError(f"{at(root)}: no published run {run_id}")
    return found


def find(store: Store, run_id: str) -> Manifest | None:
    """Return the manifest of a run, or None where that has been withdrawn or is not published yet."""
    directory = store.run(run_id)
    path = directory.shown_file(MANIFEST)
    try:
        with directory.open(MANIFEST) as file:
            content = json.loads(file.read())
        if content.pop("manifest_version") != MANIFEST_VERSION:
            raise ValueError("written by another version of list-lru-audit")
        if not isinstance(content["versions"]["schema"], int):
            raise TypeError("the schema's version is no number")
        content["files"] = tuple(File(**file) for file in content["files"])
        for name in ("started_at", "finished_at"):
            content[name] = datetime.fromisoformat(content[name])
        manifest = Manifest(directory=directory, **content)
        if manifest.run_id != directory.name:
            raise ValueError(f"it is of run {manifest.run_id!a}")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and store.withdrawn(run_id):
            return None
        raise WarehouseError(f"{path}: {cause(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WarehouseError(f"{path}: not a manifest that can be read: {why}") from error
    return manifest
