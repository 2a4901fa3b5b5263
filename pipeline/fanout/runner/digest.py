"""Digests of what the rows of a core depend on. A core with the digest of an earlier run would give the same rows."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.fanout.transports.command import arguments
from pipeline.inventory import Target

_PIPELINE = Path(__file__).parents[2]
# What unpacks a core.
_UNPACKERS = ("fanout/runner/unpack.py", "inventory/packed.py")
_BTF_SUFFIXES = (".btf", ".btf.tar.xz")
# Minimum age of a file's last change. A younger file may change again without a visible difference: its size stays, and
# the times of a file system advance in steps, on FAT of 2 s.
_MIN_AGE_S = 2.0
# A hung file system delays a batch at most this long. Its cores are then read, each with its own deadline.
_TIMEOUT_S = 5.0


class Digester:
    """Computes the digests of the cores of a batch.

    A digest covers the core (path, device, inode, size, mtime, ctime), `vmlinux`, `vmcoreinfo` and the files of
    `btf_dir` in the same way, the sources of the collector and of what unpacks a core, the collector's arguments, and
    the versions of drgn and pyarrow. It does not cover files that the collector finds by itself: a vmlinux in
    `debug_dir`, DWARF in drgn's standard places, a System.map. Those are checked against the build of the kernel, so
    that another file gives the same rows or none.

    The digest of rows is one that was made before the core was read: if a file changed meanwhile, the next run finds
    another digest and reads the core again. The worker also compares the digest after the read, in case the file is put
    back later.
    """

    def __init__(self) -> None:
        # Once for the batch: there may be thousands of files. A later change gives the next run another digest.
        self._btf_stamps = functools.cache(_btf_stamps)

    def digests(self, targets: Sequence[Target]) -> dict[str, str]:
        """Return the digests of cores by target name, as of now except for the files of `btf_dir`.

        There is no digest for targets other than cores of this node, for those with an interpreter of their own, whose
        drgn is unknown, and for files that cannot be opened or changed less than _MIN_AGE_S ago.
        """
        cores = [
            target for target in targets if target.kind == "vmcore" and not target.over_ssh and target.python is None
        ]
        digests: dict[str, str] = {}
        if cores:
            # A thread, since stat(2) on a hung file system does not return and cannot be interrupted.
            thread = threading.Thread(target=self._add_digests, args=(cores, digests), daemon=True)
            thread.start()
            thread.join(_TIMEOUT_S)
        return dict(digests)

    def _add_digests(self, cores: Sequence[Target], digests: dict[str, str]) -> None:
        try:
            versions = _versions()
        except importlib.metadata.PackageNotFoundError:  # the collector reports `no_drgn`, or one of unknown version
            return
        stamp = functools.cache(_stamp)
        for core in cores:
            try:
                paths = (core.source, core.vmlinux, core.vmcoreinfo)
                files = [(path, stamp(path)) for path in paths if path is not None]
                btf_files = self._btf_stamps(core.btf_dir) if core.btf_dir is not None else []
            except OSError:  # reading the core gives the reason
                continue
            content = json.dumps([versions, core.via, arguments(core), files, btf_files])
            digests[core.name] = hashlib.sha256(content.encode()).hexdigest()


@functools.cache
def _versions() -> list[str]:
    """Return a digest of the sources and the versions of the libraries, as of the start of this process."""
    digest = hashlib.sha256()
    for path in sorted([*(_PIPELINE / "collector").rglob("*.py"), *map(_PIPELINE.joinpath, _UNPACKERS)]):
        digest.update(b"%s %d\n" % (os.fsencode(path.relative_to(_PIPELINE)), path.stat().st_size))
        digest.update(path.read_bytes())
    return [digest.hexdigest(), *(importlib.metadata.version(library) for library in ("drgn", "pyarrow"))]


def _btf_stamps(path: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the stamp of each BTF file below a directory."""
    os.stat(path)  # os.walk passes over a directory that does not exist
    files = [os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names]
    return [(file, _stamp(file)) for file in sorted(files) if file.endswith(_BTF_SUFFIXES)]


def _stamp(path: str) -> tuple[int, ...]:
    """Return the numbers that change with a file's content.

    :raises OSError: the file cannot be opened, is not a regular file, or is too young.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # open(2) of a device may have effects
        raise OSError(f"{path}: not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # on NFS open(2) fetches the times, stat(2) may not
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if time.time() - max(status.st_mtime, status.st_ctime) < _MIN_AGE_S:
        raise OSError(f"{path}: changed less than {_MIN_AGE_S:g} s ago")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
