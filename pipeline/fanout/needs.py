"""What an embedded Ray needs of this machine or container: where it lacks that, Ray waits for ever or aborts."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common import limits
from pipeline.common.text import human_bytes

# Processes and threads of Ray 2.60 with the settings of `cluster`: its own with a spare worker, and those of a worker
# with its collector.
_RAY_TASKS = 130
_WORKER_TASKS = 25
# Ray's logs and sockets take 200 KB, and grow with the number of workers and of errors.
_LOG_BYTES = 16 << 20
_SHM = "/dev/shm"
# A socket's path may have 107 bytes, of which Ray needs 83.
_MAX_DIRECTORY_BYTES = 24
# CAP_SYS_ADMIN and CAP_SYS_RESOURCE, each of which lifts RLIMIT_NPROC.
_UNLIMITED_CAPABILITIES = 1 << 21 | 1 << 24


def ray_directory() -> str:
    """Return where Ray keeps its files: TMPDIR, or /tmp where the path of that is too long for Ray's sockets."""
    directory = tempfile.gettempdir()
    return directory if len(os.fsencode(directory)) <= _MAX_DIRECTORY_BYTES else "/tmp"


def find_shortage(workers: int, directory: str, object_store_bytes: int) -> str | None:
    """Return what is too low for an embedded Ray and what to do, on one line; None if nothing is.

    :param directory: where Ray keeps its files, and its object store if /dev/shm is too small.
    """
    count = _RAY_TASKS + workers * _WORKER_TASKS
    headroom, limit = min(_task_headrooms(), default=(count, ""))
    if headroom < count:
        return (
            f"it needs {count} processes and threads for {workers} workers, and only {max(0, headroom)} can be started "
            f"({limit}); raise that limit, or collect fewer targets at a time (--parallel, --ssh-parallel)"
        )
    shm_bytes = _free_bytes(_SHM)
    needed_bytes = _LOG_BYTES + (object_store_bytes if shm_bytes < object_store_bytes else 0)
    free_bytes = _free_bytes(directory)
    if free_bytes < needed_bytes:
        reason = f", as {_SHM} has only {human_bytes(shm_bytes)}" if needed_bytes > _LOG_BYTES else ""
        return (
            f"{directory} has {human_bytes(free_bytes)} free, and it needs {human_bytes(needed_bytes)}{reason}; "
            f"free some, or set TMPDIR to another directory, with a path of at most {_MAX_DIRECTORY_BYTES} characters"
        )
    return None


def describe_limits(directory: str) -> str:
    """Return the limits on which Ray's start may fail, for a message; parameter as for `find_shortage`."""
    texts = [f"{limit}, {headroom} more can be started" for headroom, limit in sorted(_task_headrooms())[:1]]
    texts += [f"{human_bytes(_free_bytes(place))} free in {place}" for place in (_SHM, directory)]
    return ", ".join(texts)


def _task_headrooms() -> Iterator[tuple[int, str]]:
    """Yield how many more processes and threads each limit allows that this process sees, with its name and value.

    A container does not see the limits of the cgroups above its own, nor the processes of its account outside.
    """
    for directory in limits.cgroups("pids"):
        with contextlib.suppress(OSError, ValueError):  # the controller is off, or at the root; "max"
            limit = _number(directory / "pids.max")
            yield limit - _number(directory / "pids.current"), f"pids.max of the container or service is {limit}"
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and not _is_unlimited_account():
        yield limit - _count_account_threads(), f"ulimit -u is {limit}"
    with contextlib.suppress(OSError, ValueError, IndexError):  # /proc of another kind
        thread_count = int(Path("/proc/loadavg").read_bytes().split()[3].partition(b"/")[2])
        for name in ("threads-max", "pid_max"):
            limit = _number(Path("/proc/sys/kernel", name))
            yield limit - thread_count, f"kernel.{name} is {limit}"


def _number(path: Path) -> int:
    return int(path.read_bytes())


def _is_unlimited_account() -> bool:
    """Whether RLIMIT_NPROC does not hold for this process: it is root's, or has a capability."""
    capabilities = re.search(rb"^CapEff:\s*(\w+)$", _status("self"), re.MULTILINE)
    return os.getuid() == 0 or bool(capabilities and int(capabilities[1], 16) & _UNLIMITED_CAPABILITIES)


def _count_account_threads() -> int:
    """Return the number of threads of this process's real user, as RLIMIT_NPROC counts them."""
    own = re.compile(rb"^Uid:\s%d\s.*^Threads:\s(\d+)$" % os.getuid(), re.MULTILINE | re.DOTALL)
    matches = (own.search(_status(pid)) for pid in filter(str.isdigit, os.listdir("/proc")))
    return sum(int(match[1]) for match in matches if match)


def _status(pid: str) -> bytes:
    """Return the status of a process, nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return b""


def _free_bytes(directory: str) -> int:
    """Return the free space of a directory in bytes, 0 if it does not exist."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
