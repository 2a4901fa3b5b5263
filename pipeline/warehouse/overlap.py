"""One run of an audit at a time: a lock on a file that says who has it.

It counts for all that share the file system. An object store has no locks: the file is then beside what is staged, and
counts for the runs of this account on this machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.common.text import printable
from pipeline.warehouse import locks
from pipeline.warehouse.errors import WarehouseError, storage
from pipeline.warehouse.store import at

# Of what a stranger may have written there.
_MOST_SHOWN_BYTES = 200


@contextmanager
def alone(root: str | Path, audit: str, overlap: bool = False) -> Iterator[None]:
    """Keep other runs of an audit out of a warehouse, or raise WarehouseError naming the one that does.

    :param overlap: go on where there is another.
    """
    store = at(root)
    # Of any length, with any character, and from a manifest that a stranger may have written.
    path = store.locks / hashlib.sha256(audit.encode(errors="backslashreplace")).hexdigest()[:16]
    with storage(path, "nothing was audited"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        if locks.take(file):
            with storage(path, "nothing was audited"):
                file.truncate(0)
                file.write(f"pid {os.getpid()} on {platform.node()} since {datetime.now(UTC):%F %T} UTC\n".encode())
                os.fsync(file.fileno())  # for those on other machines
        elif not overlap:
            file.seek(0)
            holder = printable(file.read(_MOST_SHOWN_BYTES).decode(errors="replace").strip()) or "another lru-audit"
            remedy = "wait until it has ended, or run beside it with --overlap"
            raise WarehouseError(f"{store}: audit {audit!a} is at work: {holder}; {remedy}")
        yield
