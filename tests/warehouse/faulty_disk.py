"""A file system that passes everything on to a directory and fails one chosen operation: FUSE, in a process of its own.

    python -m tests.warehouse.faulty_disk DIRECTORY MOUNT_POINT

An extended attribute of its root sets the fault, and is read as the log of what happened since. A failed fsync loses
what was written to the file since the last one, and the next one succeeds, as on Linux (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_ATTRIBUTE = "user.fault"
# What each operation may fail with; None stands for a short write, which is no error.
ERRORS: Mapping[str, tuple[int | None, ...]] = {
    "open": (errno.EIO, errno.ENFILE),
    "create": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "read": (errno.EIO,),
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT, None),
    "truncate": (errno.EIO,),
    "flush": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "fsyncdir": (errno.EIO, errno.ENOSPC),
    "opendir": (errno.EIO,),
    "mkdir": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "link": (errno.EIO, errno.ENOSPC, errno.EPERM),
    "rename": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "unlink": (errno.EIO,),
    "rmdir": (errno.EIO,),
}


@dataclass
class Log:
    """What happened since a fault was set: the operations, and runs that were published before they were durable."""

    operations: list[str] = field(default_factory=list)
    failed_path: str | None = None
    early: list[str] = field(default_factory=list)
    undurable: list[int] = field(default_factory=list)  # inodes


class Disk:
    """A mounted file system and the directory behind it."""

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self.directory = directory
        self.mount_point = mount_point

    def set_fault(self, number: int | None = None, error: int | None = None, sticky: bool = False) -> None:
        """Fail the operation with this number from now, and if `sticky` all later ones of its kind; None: no fault."""
        os.setxattr(self.mount_point, _ATTRIBUTE, json.dumps([number, error, sticky]).encode())

    def log(self) -> Log:
        return Log(**json.loads(os.getxattr(self.mount_point, _ATTRIBUTE)))


@contextlib.contextmanager
def mounted(directory: Path) -> Iterator[Disk]:
    """Mount a faulty disk below a directory while the block lasts; skip the test where that is not possible."""
    if not os.access("/dev/fuse", os.W_OK) or importlib.util.find_spec("mfusepy") is None:
        pytest.skip("needs FUSE")
    disk = Disk(directory / "behind", directory / "disk")
    for path in (disk.directory, disk.mount_point):
        path.mkdir()
    command = [sys.executable, "-m", "tests.warehouse.faulty_disk", str(disk.directory), str(disk.mount_point)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not os.path.ismount(disk.mount_point):
            if process.poll() is not None:
                errors = process.communicate()[1]
                if "libfuse" in errors or "fuse: " in errors:  # no library, or no right to mount
                    pytest.skip("needs FUSE")
                raise RuntimeError(errors)
            time.sleep(0.01)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk.mount_point], check=False, stderr=subprocess.DEVNULL)
        process.terminate()
        process.communicate()


def serve(directory: str, mount_point: str) -> None:
    import mfusepy

    class Operations(mfusepy.Operations):
        """Inodes in `undurable` have data or names that a power cut would lose."""

        use_ns = True

        def __init__(self) -> None:
            self.log = Log()
            self.fault: tuple[int | None, int | None, bool] = (None, None, False)
            self.failing: str | None = None
            self.undurable: set[int] = set()
            self.writable: set[int] = set()
            self.unsynced: dict[int, list[tuple[int, int]]] = defaultdict(list)

        def _full(self, path: str) -> str:
            return directory + path

        def _step(self, name: str, path: str) -> bool:
            """Count an operation, and fail it if it is the chosen one; return whether it is a short write."""
            number, error, sticky = self.fault
            if number == len(self.log.operations) or self.failing == name:
                self.log.failed_path = self.log.failed_path or path
                self.failing = name if sticky else None
                self.log.operations.append(name)
                if error is None:
                    return True
                raise mfusepy.FuseOSError(error)
            self.log.operations.append(name)
            return False

        def _names_changed(self, *paths: str) -> None:
            for path in paths:
                self.undurable.add(os.lstat(os.path.dirname(self._full(path))).st_ino)

        def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
            self.fault = tuple(json.loads(value))
            self.failing, self.log = None, Log()
            self.undurable.clear()
            return 0

        def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
            if name != _ATTRIBUTE:
                raise mfusepy.FuseOSError(errno.ENODATA)
            return json.dumps({**asdict(self.log), "undurable": sorted(self.undurable)}).encode()

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            status = os.lstat(self._full(path))
            attributes: dict[str, Any] = {
                name: getattr(status, name) for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino")
            }
            return attributes | {f"st_{time}": getattr(status, f"st_{time}_ns") for time in ("atime", "mtime", "ctime")}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self._full(path))]

        def opendir(self, path: str) -> int:
            self._step("opendir", path)
            return 0

        def open(self, path: str, flags: int) -> int:
            self._step("open", path)
            descriptor = os.open(self._full(path), flags)
            if flags & os.O_ACCMODE:
                self.writable.add(descriptor)
            return descriptor

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            self._step("create", path)
            descriptor = os.open(self._full(path), os.O_RDWR | os.O_CREAT, mode)
            self._names_changed(path)
            self.undurable.add(os.fstat(descriptor).st_ino)
            self.writable.add(descriptor)
            return descriptor

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            self._step("read", path)
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            if self._step("write", path):
                data = data[: len(data) // 2 or 1]
            inode = os.fstat(fh).st_ino
            self.undurable.add(inode)
            self.unsynced[inode].append((offset, len(data)))
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            self._step("truncate", path)
            os.truncate(self._full(path), length)
            self.undurable.add(os.lstat(self._full(path)).st_ino)
            return 0

        def flush(self, path: str, fh: int) -> int:
            if fh in self.writable:  # close(2) of a file that was only read has nothing to fail
                self._step("flush", path)
            return 0

        def release(self, path: str, fh: int) -> int:
            self.writable.discard(fh)
            os.close(fh)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            inode = os.fstat(fh).st_ino
            spans = self.unsynced.pop(inode, [])
            try:
                self._step("fsync", path)
            except OSError:
                size = os.fstat(fh).st_size
                with open(self._full(path), "r+b") as file:
                    for offset, length in spans:
                        file.seek(offset)
                        file.write(bytes(max(0, min(length, size - offset))))
                raise
            finally:
                self.undurable.discard(inode)
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            self._step("fsyncdir", path)
            self.undurable.discard(os.lstat(self._full(path)).st_ino)
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            self._step("mkdir", path)
            os.mkdir(self._full(path), mode)
            self._names_changed(path)
            return 0

        def link(self, target: str, source: str) -> int:
            self._step("link", target)
            os.link(self._full(source), self._full(target))
            self._names_changed(target)
            return 0

        def symlink(self, target: str, source: str) -> int:
            os.symlink(source, self._full(target))
            return 0

        def readlink(self, path: str) -> str:
            return os.readlink(self._full(path))

        def rename(self, old: str, new: str) -> int:
            self._step("rename", old)
            if os.path.basename(os.path.dirname(new)) == "runs":
                files = [old, *(f"{old}/{name}" for name in os.listdir(self._full(old)))]
                self.log.early += [file for file in files if os.lstat(self._full(file)).st_ino in self.undurable]
            os.rename(self._full(old), self._full(new))
            self._names_changed(old, new)
            return 0

        def unlink(self, path: str) -> int:
            self._step("unlink", path)
            os.unlink(self._full(path))
            self._names_changed(path)
            return 0

        def rmdir(self, path: str) -> int:
            self._step("rmdir", path)
            os.rmdir(self._full(path))
            self._names_changed(path)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(self._full(path), mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            os.chown(self._full(path), uid, gid)
            return 0

        def utimens(self, path: str, times: Any = None) -> int:
            os.utime(self._full(path), ns=times)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            status = os.statvfs(self._full(path))
            names = "f_bavail f_bfree f_blocks f_bsize f_favail f_ffree f_files f_flag f_frsize f_namemax"
            return {name: getattr(status, name) for name in names.split()}

    uncached = {"entry_timeout": 0, "attr_timeout": 0, "negative_timeout": 0}
    mfusepy.FUSE(Operations(), mount_point, foreground=True, nothreads=True, hard_remove=True, **uncached)


if __name__ == "__main__":
    serve(*sys.argv[1:])
