"""Verification of published runs against their manifests and the checks in `sql/checks/`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem, copy_files

from pipeline.common import scratch
from pipeline.common.errors import AuditError
from pipeline.warehouse.errors import WarehouseError, cause, storage_errors
from pipeline.warehouse.runs import File, Manifest, datasets, find_manifest
from pipeline.warehouse.staging import Check
from pipeline.warehouse.store import INPUTS, Folder, open_store


def problems(root: str | Path, run_id: str, check: Check) -> Iterator[str]:
    """Yield a line that names the file for each problem of a run.

    A file has a problem if it is missing, or differs from the manifest in size, checksum or number of rows. Only if no
    file has one are the rows checked for contradictions.

    :param check: `query.check`.
    """
    try:
        manifest = find_manifest(open_store(root), run_id)
    except WarehouseError as error:
        yield str(error)
        return
    if manifest is None:  # expired meanwhile, or not published yet
        return
    with _local_copy(manifest) as copy:
        lines = [*_inputs_problems(copy), *(line for file in copy.files for line in _file_problems(copy, file))]
        yield from lines
        if lines:
            return
        try:
            for target, name, reason in check(datasets([copy])):
                yield f"{copy.directory}: check {name}: {target!a}: {reason}"
        except AuditError as error:
            yield f"{copy.directory}: {error}"


@contextmanager
def _local_copy(manifest: Manifest) -> Iterator[Manifest]:
    """Copy the files of a run from an object store to this machine, since each is read many times."""
    source = manifest.directory
    if source.filesystem.type_name == "local":
        yield manifest
        return
    with scratch.directory("lru-copy.") as path:
        copy = Folder(LocalFileSystem(), path, source.display_path)
        with storage_errors(source.display_path):
            for name in (INPUTS, *(file.path for file in manifest.files)):
                with suppress(FileNotFoundError):
                    copy_files(source.file_path(name), copy.file_path(name), source.filesystem, copy.filesystem)
        yield replace(manifest, directory=copy)


def _inputs_problems(manifest: Manifest) -> Iterator[str]:
    if manifest.inputs_sha256 is None:
        return
    path = manifest.directory.display_path_of(INPUTS)
    try:
        digest = manifest.directory.sha256(INPUTS)
    except OSError as error:
        yield f"{path}: {cause(error)}"
        return
    if digest != manifest.inputs_sha256:
        yield f"{path}: sha256 is {digest}, but the manifest has {manifest.inputs_sha256}"


def _file_problems(manifest: Manifest, file: File) -> Iterator[str]:
    directory = manifest.directory
    path, display_path = directory.file_path(file.path), directory.display_path_of(file.path)
    try:
        size = directory.filesystem.get_file_info(path).size
        digest = directory.sha256(file.path)
        comparisons = [("bytes", size, file.bytes), ("sha256", digest, file.sha256)]
        with pq.ParquetFile(path, filesystem=directory.filesystem) as parquet:
            comparisons.append(("rows", parquet.metadata.num_rows, file.rows))
    except pa.ArrowException as error:
        yield f"{display_path}: cannot be read as Parquet: {cause(error)}"
    except OSError as error:
        yield f"{display_path}: {cause(error)}"
        return
    for name, actual, expected in comparisons:
        if actual != expected:
            yield f"{display_path}: {name} is {actual}, but the manifest has {expected}"
