"""A lock that lets one run of an audit write to a warehouse at a time; its file names the holder.

It works between all machines that share the file system. An object store has no locks: there the lock file is next to
the staging directory, and works between the runs of this account on this machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.common.text import printable
from pipeline.warehouse import files, locks
from pipeline.warehouse.errors import WarehouseError, storage_errors
from pipeline.warehouse.store import open_store

# Limits what the message quotes from the lock file, which anyone with access to the warehouse may have written.
_MAX_HOLDER_BYTES = 200


@contextmanager
def exclusive_audit(root: str | Path, audit: str, overlap: bool = False) -> Iterator[None]:
    """Keep other runs of an audit out of a warehouse.

    :param overlap: continue even if another run of the audit is in progress.
    :raises WarehouseError: another run of the audit is in progress; the message names its process and host.
    """
    store = open_store(root)
    # Hashed, since an audit's name can have any length and any characters, and may come from a foreign manifest.
    path = store.locks / hashlib.sha256(audit.encode(errors="backslashreplace")).hexdigest()[:16]
    with storage_errors(path, "nothing was audited"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0, opener=files.open_own)  # noqa: SIM115
    try:
        if locks.try_lock(file):
            with storage_errors(path, "nothing was audited"):
                file.truncate(0)
                file.write(f"pid {os.getpid()} on {platform.node()} since {datetime.now(UTC):%F %T} UTC\n".encode())
                os.fsync(file.fileno())  # for readers on other machines
        elif not overlap:
            file.seek(0)
            holder = printable(file.read(_MAX_HOLDER_BYTES).decode(errors="replace").strip()) or "another lru-audit"
            remedy = "wait until it ends, or run both at once with --overlap"
            raise WarehouseError(f"{store}: audit {audit!a} is already running: {holder}; {remedy}")
        yield
    finally:
        with suppress(OSError):  # what it says of the holder is of no use any more
            file.close()
