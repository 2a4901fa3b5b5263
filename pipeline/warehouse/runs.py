"""Published runs: their names, their manifests, and their tables as pyarrow datasets.

Only files that a manifest lists exist for a reader; whatever else lies in the warehouse is never seen.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from pyarrow import fs

from pipeline.collector.status import GOOD
from pipeline.warehouse import schema
from pipeline.warehouse.errors import WarehouseError

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
MANIFEST = "manifest.json"
INPUTS = "inputs.jsonl.gz"
STAGED = "run.json"
MANIFEST_VERSION = 1


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

    directory: Path
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

    def text(self) -> str:
        """Return the manifest as the JSON that `read` takes."""
        content = asdict(self)
        del content["directory"]
        for name in ("started_at", "finished_at"):
            content[name] = content[name].isoformat()
        return json.dumps({"manifest_version": MANIFEST_VERSION, **content}, indent=1) + "\n"


def new_run_id() -> str:
    """Return a name for a run that starts now: ``YYYYMMDDTHHMMSSZ-<8 hex>``, UTC."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def runs(root: Path) -> list[Manifest]:
    """Return the published runs of a warehouse, the newest last; none when there is no warehouse yet.

    Raises WarehouseError naming the manifest that cannot be read.
    """
    directory = root / "runs"
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    found = [read(directory / name) for name in names if RUN_ID.fullmatch(name)]
    return sorted(found, key=lambda manifest: (manifest.started_at, manifest.run_id))


def resolve(root: Path, run: str, audit: str | None = None) -> str:
    """Return the run_id that a unique prefix means among the published runs, or among those of an audit."""
    known = [manifest.run_id for manifest in runs(root) if audit in (None, manifest.audit)]
    return _match(root, run, known, "published run" + (f" of audit {audit}" if audit else ""))


def resumable(root: Path, run: str) -> str:
    """Return the run_id that a unique prefix or `latest` means among the published runs and those in staging.

    Raises WarehouseError when there is none and for a run that another one revises, published or not.
    """
    published = {manifest.run_id: manifest.revision_of for manifest in runs(root)}
    revising = published | {run_id: run["revision_of"] for run_id, run in staged(root).items()}
    revisions = {revised: run_id for run_id, revised in revising.items()}
    known = sorted(revising)
    run_id = _match(root, run, [one for one in known if run != "latest" or one not in revisions], "run")
    if run_id in revisions:
        raise WarehouseError(f"{root}: run {run_id} is revised by {revisions[run_id]}: resume that one")
    return run_id


def unpublished(root: Path, run: str) -> str:
    """Return the run_id that a unique prefix or `latest` means among the runs in staging."""
    return _match(root, run, sorted(staged(root)), "run in staging")


def staged(root: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each run that waits in staging; one that is published only awaits its removal."""
    directories = [path.parent for path in (root / "staging").glob(f"*/{STAGED}")]
    return {path.name: read_staged(path) for path in directories if not (root / "runs" / path.name).exists()}


def read_staged(directory: Path) -> dict[str, Any]:
    """Return what is known of a run in staging."""
    path = directory / STAGED
    try:
        run: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WarehouseError(f"{path}: not a staged run: {error}; remove its directory") from error
    return run


def inputs(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the options and the targets of a run, staged or published."""
    with _inputs(directory) as lines:
        options, *targets = lines
    return options, targets


def options(directory: Path) -> dict[str, Any]:
    """Return the options alone."""
    with _inputs(directory) as lines:
        (first,) = islice(lines, 1)
    return first


@contextmanager
def _inputs(directory: Path) -> Iterator[Iterator[dict[str, Any]]]:
    path = directory / INPUTS
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            yield map(json.loads, file)
    except (OSError, EOFError, ValueError) as error:
        raise WarehouseError(f"{path}: cannot be read: {error}; audit it anew with: lru-audit run") from error


def _match(root: Path, run: str, known: Sequence[str], what: str) -> str:
    """Return the one of `known`, the newest last, that a unique prefix or `latest` means."""
    if not known:
        raise WarehouseError(f"{root}: no {what}")
    matching = known[-1:] if run == "latest" else [run_id for run_id in known if run and run_id.startswith(run)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise WarehouseError(f"{root}: run {run!a} is not unique: {', '.join(matching[:5])}")
    raise WarehouseError(f"{root}: no {what} {run!a}; the newest is {known[-1]}")


def tables(root: Path) -> dict[str, ds.FileSystemDataset]:
    """Return every table over all published runs, a table without files too (0 rows, all columns)."""
    return datasets(runs(root))


def datasets(manifests: Iterable[Manifest]) -> dict[str, ds.FileSystemDataset]:
    """Return every table over these runs."""
    paths: Mapping[str, list[str]] = {name: [] for name in schema.tables()}
    for manifest in manifests:
        for file in manifest.files:
            # A later schema version may have tables that this one does not know.
            paths.get(file.table, []).append(str(manifest.directory.absolute() / file.path))
    return {
        name: ds.FileSystemDataset.from_paths(
            paths[name], schema=table.arrow, format=ds.ParquetFileFormat(), filesystem=fs.LocalFileSystem()
        )
        for name, table in schema.tables().items()
    }


def read(directory: Path) -> Manifest:
    """Return the manifest of one run directory."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.pop("manifest_version") != MANIFEST_VERSION:
            raise ValueError("written by another version of list-lru-audit")
        content["files"] = tuple(File(**file) for file in content["files"])
        for name in ("started_at", "finished_at"):
            content[name] = datetime.fromisoformat(content[name])
        manifest = Manifest(directory=directory, **content)
        if manifest.run_id != directory.name:
            raise ValueError(f"it is of run {manifest.run_id!a}")
    except OSError as error:
        raise WarehouseError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WarehouseError(f"{path}: not a manifest that can be read: {why}") from error
    return manifest
