"""Where the runs of a warehouse are: a directory of this machine, or a prefix of an object store.

A run appears at once, whole: a directory's by rename(2), once everything in it is synced; an object store's with its
manifest.json, which is put last. It vanishes the same way. No more is asked of an object store than that an object is
whole or absent; what is staged stays on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.warehouse.errors import LocationError, WarehouseError, storage
from pipeline.warehouse.parquet import sync

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
MANIFEST = "manifest.json"
INPUTS = "inputs.jsonl.gz"
# What is on its way out has this behind its name, in staging.
EXPIRED = ".expired"

# A name server, a handshake and S3 itself answer within seconds; an endpoint that does not is given up after three.
_CONNECT_TIMEOUT_S = 5
_ATTEMPTS = 3
_S3_OPTIONS = ("endpoint_override", "region", "scheme")


@dataclass(frozen=True)
class Folder:
    """A directory in a pyarrow filesystem; as text, what a person calls it."""

    filesystem: fs.FileSystem
    path: str
    shown: str

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def folder(self, name: str) -> Folder:
        return Folder(self.filesystem, self.file(name), self.shown_file(name))

    def file(self, name: str) -> str:
        """Return the path of a file in the filesystem."""
        return f"{self.path}/{name}"

    def shown_file(self, name: str) -> str:
        """Return what a person calls a file."""
        return f"{self.shown}/{name}"

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to read it from its start to its end."""
        return self.filesystem.open_input_stream(self.file(name), compression=None)

    def entries(self) -> list[fs.FileInfo]:
        """Return what is in it, sorted by name; nothing where it does not exist."""
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.path))
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda info: str(info.base_name))

    def has(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(self.file(name)).type == fs.FileType.File)


def here(directory: Path) -> Folder:
    """Return a directory of this machine."""
    return Folder(fs.LocalFileSystem(), str(directory.absolute()), str(directory))


class Store:
    """The published runs of one warehouse, where its runs are staged, and where their locks are.

    OSErrors pass: whoever calls knows what was to be done.
    """

    def __init__(self, root: Folder, staging: Path) -> None:
        self.root = root
        self.staging = staging
        self.locks = staging.with_name(f"{staging.name}.locks")

    def __str__(self) -> str:
        return str(self.root)

    def run(self, run_id: str) -> Folder:
        return self.root.folder("runs").folder(run_id)

    def names(self) -> list[str]:
        """Return the names in `runs/` that are run ids, sorted; one may be of what is no run yet, or no longer."""
        names = (str(info.base_name) for info in self.root.folder("runs").entries())
        return [name for name in names if RUN_ID.fullmatch(name)]

    def has(self, run_id: str) -> bool:
        """Say whether a run is published."""
        return self.run(run_id).has(MANIFEST)

    def withdrawn(self, run_id: str) -> bool:
        """Say whether a run without a manifest is none, for a reader that still saw its name."""
        raise NotImplementedError

    def commit(self, made: Path, run_id: str) -> None:
        """Publish a directory whose files are all synced."""
        raise NotImplementedError

    def withdraw(self, run_id: str) -> None:
        """Take a run out of every reader's sight, then remove its files; nothing happens to one that is gone."""
        raise NotImplementedError

    def remains(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        """Yield those of the names in `runs/` that are of no run, with the time of the last change (seconds since the
        epoch) where somebody may be at work on it."""
        raise NotImplementedError


class _Directory(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(here(root), root / "staging")
        self._runs = root / "runs"

    def withdrawn(self, run_id: str) -> bool:
        return not (self._runs / run_id).exists()

    def commit(self, made: Path, run_id: str) -> None:
        self._runs.mkdir(exist_ok=True)
        sync(self._runs.parent)
        made.rename(self._runs / run_id)
        sync(self._runs)

    def withdraw(self, run_id: str) -> None:
        self.staging.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            discard(self._runs / run_id, self.staging)

    def remains(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        return iter(())  # they are in staging


class _Objects(Store):
    """Runs as objects below a prefix. INPUTS is the first to come and, after the manifest, the first to go."""

    def withdrawn(self, run_id: str) -> bool:
        return True

    def commit(self, made: Path, run_id: str) -> None:
        run = self.run(run_id)
        if run.has(MANIFEST):
            raise WarehouseError(f"{run}: published already, and not empty; it is left as it is")
        tables = sorted({path.name for path in made.iterdir()} - {INPUTS, MANIFEST})
        for name in (INPUTS, *tables, MANIFEST):
            if name == MANIFEST and (gone := [one for one in (INPUTS, *tables) if not run.has(one)]):
                raise OSError(f"taken for interrupted, and removed, while it was uploaded: {gone[0]}")
            fs.copy_files(str(made / name), run.file(name), fs.LocalFileSystem(), run.filesystem)

    def withdraw(self, run_id: str) -> None:
        run = self.run(run_id)
        for name in (MANIFEST, INPUTS):
            with suppress(FileNotFoundError):
                run.filesystem.delete_file(run.file(name))
        with suppress(FileNotFoundError):
            run.filesystem.delete_dir(run.path)

    def remains(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        for name in names:
            files = {info.base_name: info.mtime_ns or 0 for info in self.run(name).entries()}
            if MANIFEST not in files:
                yield name, max(files.values()) / 1e9 if INPUTS in files else None


def at(location: str | Path) -> Store:
    """Return the store of a warehouse.

    :param location: a path, or a URI file:///PATH or s3://BUCKET/PREFIX; S3 takes ?endpoint_override=, region= and
        scheme= as pyarrow does, AWS_ENDPOINT_URL, and credentials from where AWS's tools have them.

    Raises LocationError for any other URI.
    """
    text = os.fspath(location)
    if "://" not in text:
        return _Directory(Path(text))
    uri = urlsplit(text)
    if uri.scheme == "file" and not uri.netloc:
        return _Directory(Path(unquote(uri.path)))
    if uri.scheme != "s3" or not uri.netloc:
        raise LocationError(f"{text!a}: a warehouse is a directory, file:///PATH or s3://BUCKET/PREFIX")
    if "@" in uri.netloc:
        raise LocationError("no credentials in a URI, everybody sees it: AWS_ACCESS_KEY_ID or a profile has them")
    options = dict(parse_qsl(uri.query, keep_blank_values=True))
    if unknown := [name for name in options if name not in _S3_OPTIONS]:
        raise LocationError(f"{text!a}: no option {unknown[0]!a}; there are {', '.join(_S3_OPTIONS)}")
    path = f"{uri.netloc}/{unquote(uri.path).strip('/')}".rstrip("/")
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    filesystem = _s3(host.rstrip("/") or None, options.get("scheme") or scheme or None, options.get("region"))
    staging = _state() / "lru-audit" / quote(f"s3://{path}" + (f"@{host}" if host else ""), safe="")
    return _Objects(Folder(filesystem, path, f"s3://{path}"), staging)


def _state() -> Path:
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError as error:
        raise LocationError("this account has no home to stage runs in: set XDG_STATE_HOME") from error


@cache
def _s3(endpoint: str | None, scheme: str | None, region: str | None) -> fs.FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        scheme=scheme,
        region=region,
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )


def discard(directory: Path, staging: Path) -> None:
    """Remove a directory so that it is gone at once; what a kill leaves of it has EXPIRED behind its name."""
    going = staging / f"{directory.name}{EXPIRED}"
    directory.rename(going)
    sync(directory.parent)
    shutil.rmtree(going, ignore_errors=True)


@contextmanager
def reachable(store: Store) -> Iterator[None]:
    """Turn an OSError of the store into one line that names the warehouse."""
    with storage(str(store)):
        yield
