"""Published runs against what their manifests and the checks of `sql/checks/` say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem, copy_files

from pipeline.common import scratch
from pipeline.common.errors import AuditError
from pipeline.warehouse.errors import WarehouseError, cause, storage
from pipeline.warehouse.runs import File, Manifest, datasets, find
from pipeline.warehouse.staging import Check
from pipeline.warehouse.store import INPUTS, Folder, at


def problems(root: str | Path, run_id: str, check: Check) -> Iterator[str]:
    """Yield a line that names the file for everything that is wrong with one run: files that are missing or differ
    from the manifest in size, checksum or rows, and where none is, rows that contradict one another.

    :param check: `query.check`.
    """
    try:
        manifest = find(at(root), run_id)
    except WarehouseError as error:
        yield str(error)
        return
    if manifest is None:  # expired meanwhile, or not published yet
        return
    with _near(manifest) as copy:
        found = [*_inputs(copy), *(line for file in copy.files for line in _file(copy, file))]
        yield from found
        if found:
            return
        try:
            for target, name, reason in check(datasets([copy])):
                yield f"{copy.directory}: check {name}: {target!a}: {reason}"
        except AuditError as error:
            yield f"{copy.directory}: {error}"


@contextmanager
def _near(manifest: Manifest) -> Iterator[Manifest]:
    """Have the files of a run on this machine: each is read many times."""
    far = manifest.directory
    if far.filesystem.type_name == "local":
        yield manifest
        return
    with scratch.directory("lru-copy.") as path:
        near = Folder(LocalFileSystem(), path, far.shown)
        with storage(far.shown):
            for name in (INPUTS, *(file.path for file in manifest.files)):
                with suppress(FileNotFoundError):
                    copy_files(far.file(name), near.file(name), far.filesystem, near.filesystem)
        yield replace(manifest, directory=near)


def _inputs(manifest: Manifest) -> Iterator[str]:
    if manifest.inputs_sha256 is None:
        return
    try:
        found = _sha256(manifest, INPUTS)
    except OSError as error:
        yield f"{manifest.directory.shown_file(INPUTS)}: {cause(error)}"
        return
    if found != manifest.inputs_sha256:
        yield f"{manifest.directory.shown_file(INPUTS)}: sha256 is {found}, in the manifest {manifest.inputs_sha256}"


def _file(manifest: Manifest, file: File) -> Iterator[str]:
    directory = manifest.directory
    shown = directory.shown_file(file.path)
    try:
        size = directory.filesystem.get_file_info(directory.file(file.path)).size
        digest = _sha256(manifest, file.path)
        differs = [("bytes", size, file.bytes), ("sha256", digest, file.sha256)]
        with pq.ParquetFile(directory.file(file.path), filesystem=directory.filesystem) as parquet:
            differs.append(("rows", parquet.metadata.num_rows, file.rows))
    except pa.ArrowException as error:
        yield f"{shown}: no Parquet file that can be read: {cause(error)}"
    except OSError as error:
        yield f"{shown}: {cause(error)}"
        return
    for what, found, listed in differs:
        if found != listed:
            yield f"{shown}: {what} is {found}, in the manifest {listed}"


def _sha256(manifest: Manifest, name: str) -> str:
    with manifest.directory.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
