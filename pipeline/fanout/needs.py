"""What an embedded Ray needs of this machine or container: where it lacks that, Ray waits for ever or aborts."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import threading
from collections.abc import Iterator

from pipeline.common import limits
from pipeline.common.text import human_bytes

# Processes and threads of Ray 2.60 with the settings of `cluster`: its own, and those of a worker with its collector.
_RAY_TASKS = 105
_WORKER_TASKS = 25
# Ray's logs and sockets take 200 KB, and grow with the number of workers and of errors.
_LOG_BYTES = 16 << 20
_SHM = "/dev/shm"


def find_shortage(workers: int, directory: str, object_store_bytes: int) -> str | None:
    """Return what is too low for an embedded Ray and what to do, on one line; None if nothing is.

    :param directory: where Ray keeps its files, and its object store if /dev/shm is too small.
    """
    count = _RAY_TASKS + workers * _WORKER_TASKS
    startable_count = _count_startable_threads(count)
    if startable_count < count:
        limit = min(_task_limits(), default=None)
        limit_text = f"{limit[1]} is {limit[0]}" if limit else "a limit of this machine"
        return (
            f"it needs {count} processes and threads for {workers} workers, and only {startable_count} can be started "
            f"({limit_text}); raise that limit, or collect fewer targets at a time (--parallel, --ssh-parallel)"
        )
    shm_bytes = _free_bytes(_SHM)
    needed_bytes = _LOG_BYTES + (object_store_bytes if shm_bytes < object_store_bytes else 0)
    free_bytes = _free_bytes(directory)
    if free_bytes < needed_bytes:
        reason = f", as {_SHM} has only {human_bytes(shm_bytes)}" if needed_bytes > _LOG_BYTES else ""
        return (
            f"{directory} has {human_bytes(free_bytes)} free, and it needs {human_bytes(needed_bytes)}{reason}; "
            "free some, or set TMPDIR to another directory"
        )
    return None


def describe_limits(directory: str) -> str:
    """Return the limits on which Ray's start may fail, for a message; parameter as for `find_shortage`."""
    texts = [f"{name} is {limit}" for limit, name in sorted(set(_task_limits()))]
    texts += [f"{human_bytes(_free_bytes(place))} free in {place}" for place in (_SHM, directory)]
    return ", ".join(texts)


def _count_startable_threads(count: int) -> int:
    """Return how many of `count` threads can run at a time besides those that run.

    No file says it: limits hold for an account, a container and those around it, and others take their part.
    """
    end = threading.Event()
    threads: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):  # can't start new thread
        for _ in range(count):
            thread = threading.Thread(target=end.wait)
            thread.start()
            threads.append(thread)
    end.set()
    for thread in threads:
        thread.join()
    return len(threads)


def _task_limits() -> Iterator[tuple[int, str]]:
    """Yield the limits of processes and threads that this process sees, with their names."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # root has none
        yield limit, "ulimit -u"
    for directory in limits.cgroups("pids"):
        with contextlib.suppress(OSError, ValueError):  # the controller is off, or at the root; "max"
            yield int((directory / "pids.max").read_text(encoding="ascii")), "pids.max of the container or service"


def _free_bytes(directory: str) -> int:
    """Return the free space of a directory in bytes, 0 if it does not exist."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
