"""A trial of what publishing a run needs of its file system or object store, before anything is collected."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from pipeline.warehouse import locks
from pipeline.warehouse.errors import WarehouseError, cause
from pipeline.warehouse.parquet import sync
from pipeline.warehouse.store import Store, existing_directory, open_store

_PREFIX = ".lru-audit-probe."
# More than the few bytes that some file systems store in an inode, even where the disk is full.
_TRIAL_BYTES = 64 << 10
# A trial takes seconds at most: one that is older, by the file system's own clock, was killed.
_REMAINS_AGE_S = 600
_log = logging.getLogger(__name__)


def probe(root: str | Path) -> None:
    """Try what publishing a run needs: to write, sync and lock a file, and to publish a directory.

    Without locks a warehouse can be used, so that is a warning. Nothing is left, not even a directory of a warehouse
    that does not exist yet.

    :raises WarehouseError: the warehouse cannot hold a run; the message says why in one line.
    """
    store = open_store(root)
    parent = existing_directory(store.staging)
    with _errors(str(parent)):
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with _errors(str(parent)):
            with open(directory / "file", "wb") as file:
                file.write(os.urandom(_TRIAL_BYTES))
                has_locks = locks.are_supported(file)
            sync(directory / "file")
            sync(directory)
        if not has_locks:
            _log.warning("%s: this file system has no locks: do not run one audit twice at a time", parent)
        with _errors(store.root.display_path_of("runs")):
            store.try_commit(directory)
        with _errors(str(store)):
            _remove_remains(store, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """Convert errors to a WarehouseError that names the given path, not the trial's own."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise WarehouseError(f"{path}: {cause(error)}; nothing was audited") from error


def _remove_remains(store: Store, directory: Path) -> None:
    """Remove what killed trials have left in a warehouse, or beside one that did not exist yet."""
    root = store.staging.parent
    oldest_s = directory.stat().st_mtime - _REMAINS_AGE_S
    for parent in (root.parent, root, store.staging, root / "runs"):
        for path in parent.glob(f"{_PREFIX}*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    shutil.rmtree(path, ignore_errors=True)
