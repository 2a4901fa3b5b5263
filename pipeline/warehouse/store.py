"""Storage of a warehouse's published runs: a local directory, or a prefix of an object store.

A run is published atomically: in a directory by rename(2), after all its files are synced; in an object store by its
manifest.json, which is uploaded last. It is withdrawn in the same way. An object store only needs to make each object
appear complete or not at all. Runs are always staged on this machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.warehouse import files
from pipeline.warehouse.errors import LocationError, WarehouseError, cause
from pipeline.warehouse.parquet import sync

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
MANIFEST = "manifest.json"
INPUTS = "inputs.jsonl.gz"
# Suffix of a run that is being removed, in staging.
EXPIRED_SUFFIX = ".expired"
# Written and removed by a trial; readers only take names that match RUN_ID.
_TRIAL_OBJECT = ".lru-audit-probe"
# What renaming a directory gives on file systems that have no such operation, such as mounted buckets: gcsfuse gives
# EMFILE. EPERM and EIO have other causes too, such as a sticky or immutable directory, or a disk that fails.
_CANNOT_RENAME = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EMFILE, errno.EINVAL)

# DNS, a handshake and S3 itself respond within seconds; an endpoint that does not is abandoned after three attempts.
_CONNECT_TIMEOUT_S = 5
_MAX_ATTEMPTS = 3
_S3_OPTIONS = ("endpoint_override", "region", "scheme")


@dataclass(frozen=True)
class Folder:
    """A directory in a pyarrow filesystem.

    `display_path` is the path or URI for messages, also returned by `str`.
    """

    filesystem: fs.FileSystem
    path: str
    display_path: str

    def __str__(self) -> str:
        return self.display_path

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def subfolder(self, name: str) -> Folder:
        return Folder(self.filesystem, self.file_path(name), self.display_path_of(name))

    def file_path(self, name: str) -> str:
        """Return the path of a file in the filesystem."""
        return f"{self.path}/{name}"

    def display_path_of(self, name: str) -> str:
        """Return the path or URI of a file for messages."""
        return f"{self.display_path}/{name}"

    def open(self, name: str) -> BufferedReader | pa.NativeFile:
        """Open a file for sequential reading."""
        if self.filesystem.type_name == "local":
            return open(self.file_path(name), "rb", opener=files.open_regular)
        return self.filesystem.open_input_stream(self.file_path(name), compression=None)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file in hex."""
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def entries(self) -> list[fs.FileInfo]:
        """Return the entries of the directory, sorted by name; an empty list if it does not exist."""
        try:
            entries = self.filesystem.get_file_info(fs.FileSelector(self.path))
        except FileNotFoundError:
            return []
        return sorted(entries, key=lambda info: str(info.base_name))

    def has_file(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(self.file_path(name)).type == fs.FileType.File)


def local_folder(directory: Path) -> Folder:
    """Return a directory of this machine as a `Folder`."""
    return Folder(fs.LocalFileSystem(), str(directory.absolute()), str(directory))


class Store:
    """The published runs of a warehouse, and the local directories for staging, locks and unpacked cores.

    Methods raise OSError; callers convert it with `errors.storage_errors`, which adds the remedy.
    """

    def __init__(self, root: Folder, staging: Path) -> None:
        self.root = root
        self.staging = staging
        self.locks = staging.with_name(f"{staging.name}.locks")
        self.unpacked = staging.with_name(f"{staging.name}.unpacked")

    def __str__(self) -> str:
        return str(self.root)

    def run_folder(self, run_id: str) -> Folder:
        return self.root.subfolder("runs").subfolder(run_id)

    def run_names(self) -> list[str]:
        """Return the names in `runs/` that are run ids, sorted, also of runs being published or withdrawn."""
        names = (str(info.base_name) for info in self.root.subfolder("runs").entries())
        return [name for name in names if RUN_ID.fullmatch(name)]

    def is_published(self, run_id: str) -> bool:
        """Whether a run is published, that is, has a manifest."""
        return self.run_folder(run_id).has_file(MANIFEST)

    def is_withdrawn(self, run_id: str) -> bool:
        """Whether a run without a manifest was withdrawn or is not yet published, rather than damaged."""
        raise NotImplementedError

    def commit(self, directory: Path, run_id: str) -> None:
        """Publish a directory whose files are all synced."""
        raise NotImplementedError

    def try_commit(self, directory: Path) -> None:
        """Try what `commit` needs with a small directory of its file system; nothing is left of it in `runs/`."""
        raise NotImplementedError

    def withdraw(self, run_id: str) -> None:
        """Hide a run from all readers, then remove its files; do nothing if it does not exist."""
        raise NotImplementedError

    def leftovers(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        """Yield each of the names in `runs/` that has no manifest, with the time of its last change (seconds since the
        epoch) if a process may be uploading it, else None."""
        raise NotImplementedError


class _DirectoryStore(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(local_folder(root), root / "staging")
        self._runs = root / "runs"

    def is_withdrawn(self, run_id: str) -> bool:
        return not (self._runs / run_id).exists()

    def commit(self, directory: Path, run_id: str) -> None:
        self._runs.mkdir(exist_ok=True)
        sync(self._runs.parent)
        published = self._runs / run_id
        self._rename(directory, published)
        try:
            sync(self._runs)
        except OSError as error:  # a power cut might undo the publication
            try:
                published.rename(directory)
            except OSError:
                problem = f"published, but a power cut might undo it ({cause(error)}, and it cannot be withdrawn)"
                raise WarehouseError(f"{published}: {problem}; check the disk, then run: lru-audit verify") from error
            raise

    def try_commit(self, directory: Path) -> None:
        runs = existing_directory(self._runs)
        trial = runs / f"{directory.name}.run"  # `runs` is the parent of both in a new warehouse
        try:
            self._rename(directory, trial)
            sync(runs)
            self._rename(trial, directory)
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    def _rename(self, directory: Path, path: Path) -> None:
        """Rename a directory.

        :raises OSError: says what to do if the file systems cannot do that.
        """
        try:
            directory.rename(path)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OSError(
                    f"on another file system than {self.staging}, but a run is published by renaming it: "
                    "keep the whole warehouse on one"
                ) from error
            if error.errno in _CANNOT_RENAME:
                raise OSError(
                    f"this file system cannot rename a directory ({os.strerror(error.errno)}), which publishes a run: "
                    "use another one, or s3://BUCKET/PREFIX for a bucket that is mounted"
                ) from error
            raise

    def withdraw(self, run_id: str) -> None:
        self.staging.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            discard(self._runs / run_id, self.staging)

    def leftovers(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        return iter(())  # in a directory, leftovers are in staging


class _ObjectStore(Store):
    """Runs as objects below a prefix. INPUTS is uploaded first, and is removed right after the manifest."""

    def is_withdrawn(self, run_id: str) -> bool:
        return True

    def commit(self, directory: Path, run_id: str) -> None:
        run = self.run_folder(run_id)
        if run.has_file(MANIFEST):
            raise WarehouseError(f"{run}: already published; left unchanged")
        tables = sorted({path.name for path in directory.iterdir()} - {INPUTS, MANIFEST})
        for name in (INPUTS, *tables, MANIFEST):
            if name == MANIFEST and (missing := [file for file in (INPUTS, *tables) if not run.has_file(file)]):
                raise OSError(f"expire removed {missing[0]} during the upload, because it looked interrupted")
            fs.copy_files(str(directory / name), run.file_path(name), fs.LocalFileSystem(), run.filesystem)

    def try_commit(self, directory: Path) -> None:
        runs = self.root.subfolder("runs")
        path = runs.file_path(_TRIAL_OBJECT)
        with runs.filesystem.open_output_stream(path) as file:
            file.write(b"written by lru-audit before it collects, to find out whether it may\n")
        # An account that may only write keeps it: its name is always the same. Another audit may have removed it.
        with suppress(OSError):
            runs.filesystem.delete_file(path)

    def withdraw(self, run_id: str) -> None:
        run = self.run_folder(run_id)
        for name in (MANIFEST, INPUTS):
            with suppress(FileNotFoundError):
                run.filesystem.delete_file(run.file_path(name))
        with suppress(FileNotFoundError):
            run.filesystem.delete_dir(run.path)

    def leftovers(self, names: Iterable[str]) -> Iterator[tuple[str, float | None]]:
        for name in names:
            files = {info.base_name: info.mtime_ns or 0 for info in self.run_folder(name).entries()}
            if MANIFEST not in files:
                yield name, max(files.values()) / 1e9 if INPUTS in files else None


def open_store(location: str | Path) -> Store:
    """Return the store of a warehouse.

    :param location: a path, or a URI file:///PATH or s3://BUCKET/PREFIX. S3 takes ?endpoint_override=, region= and
        scheme= as pyarrow does, AWS_ENDPOINT_URL, and credentials from the same places as AWS's tools.
    :raises LocationError: any other URI.
    """
    text = os.fspath(location)
    if "://" not in text:
        return _DirectoryStore(Path(text))
    uri = urlsplit(text)
    if uri.scheme == "file" and not uri.netloc:
        return _DirectoryStore(Path(unquote(uri.path)))
    if uri.scheme != "s3" or not uri.netloc:
        raise LocationError(f"{text!a}: a warehouse is a directory, file:///PATH or s3://BUCKET/PREFIX")
    if "@" in uri.netloc:
        raise LocationError(
            "the URI contains credentials, which other users could see; set AWS_ACCESS_KEY_ID or use a profile"
        )
    options = dict(parse_qsl(uri.query, keep_blank_values=True))
    if unknown := [name for name in options if name not in _S3_OPTIONS]:
        raise LocationError(f"{text!a}: unknown option {unknown[0]!a}; expected {', '.join(_S3_OPTIONS)}")
    path = f"{uri.netloc}/{unquote(uri.path).strip('/')}".rstrip("/")
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    filesystem = _s3(host.rstrip("/") or None, options.get("scheme") or scheme or None, options.get("region"))
    staging = _state_home() / "lru-audit" / quote(f"s3://{path}" + (f"@{host}" if host else ""), safe="")
    return _ObjectStore(Folder(filesystem, path, f"s3://{path}"), staging)


def _state_home() -> Path:
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError as error:
        raise LocationError("no home directory to stage runs in; set XDG_STATE_HOME") from error


@cache
def _s3(endpoint: str | None, scheme: str | None, region: str | None) -> fs.FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        scheme=scheme,
        region=region,
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
    )


def existing_directory(path: Path) -> Path:
    """Return a path that exists: the given one, or else the nearest above it."""
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))


def discard(directory: Path, staging: Path) -> None:
    """Remove a directory, atomically for readers: rename it to NAME.expired in staging, then delete that."""
    path = staging / f"{directory.name}{EXPIRED_SUFFIX}"
    directory.rename(path)
    sync(directory.parent)
    with suppress(OSError):
        remove(path)


def remove(path: Path) -> None:
    """Remove a directory with its content, or a link to one without it.

    :raises OSError: names the directory.
    """
    try:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        error.filename = str(path)  # shutil gives the name of a file within
        raise


def make_directory(path: Path) -> None:
    """Create a directory and those above it that are missing, each with a durable name."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)
