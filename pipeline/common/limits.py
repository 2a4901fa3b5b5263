"""The memory and the CPUs that this process may use: in a container they are not the machine's.

The limit of a cgroup holds for those below it too. A container sees its own cgroup, and on some hosts those above.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

# Memory for one target at a time: a Ray worker takes 50 MB, its collector 45 MB, or 220 MB with DWARF.
_WORKER_BYTES = 256 << 20
_PROC = Path("/proc/self")


def memory_bytes() -> int:
    """Return the memory of this machine, or the lowest limit of this process's cgroups and resource limits."""
    rlimits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    limits = [*_cgroup_memory_limits(), *(rlimit for rlimit in rlimits if rlimit != resource.RLIM_INFINITY)]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


@contextmanager
def allocations(max_bytes: int) -> Iterator[None]:
    """Raise MemoryError in the block when this process allocates this much more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    (allocated_kib,) = (words.split()[1] for words in _lines(_PROC / "status") if words.startswith("VmData:"))
    limit = (int(allocated_kib) << 10) + max_bytes
    others = [other for other in (soft, hard) if other != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([limit, *others]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def cpus() -> int:
    """Return the number of CPUs of this process's affinity, or the lowest CPU quota of its cgroups, at least 1."""
    return max(1, min([len(os.sched_getaffinity(0)), *_cgroup_cpu_quotas()]))


def workers() -> int:
    """Return the number of targets to collect at a time: each takes a CPU, and memory for a worker and a collector."""
    return min(cpus(), max(1, memory_bytes() // _WORKER_BYTES))


def _cgroup_memory_limits() -> Iterator[int]:
    """Yield the limits in bytes. Without a limit cgroup v1 has a number that is larger than any memory."""
    for directory in cgroups("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):  # a process above memory.high hardly runs
            yield from map(int, filter(str.isdigit, _words(directory / name)))
        for line in _lines(directory / "memory.stat"):
            if line.startswith("hierarchical_memory_limit "):  # in cgroup v1, with those that a container does not see
                yield int(line.split()[1])


def _cgroup_cpu_quotas() -> Iterator[int]:
    """Yield the quotas in whole CPUs."""
    for directory in cgroups("cpu"):
        words = _words(directory / "cpu.max")
        words = words or [*_words(directory / "cpu.cfs_quota_us"), *_words(directory / "cpu.cfs_period_us")]
        match words:
            case [quota_us, period_us] if quota_us.isdigit():  # else "max" or -1: no quota
                yield int(quota_us) // int(period_us)


def cgroups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's cgroup and of those above it that it sees, of cgroup v2 and v1.

    :param controller: of cgroup v1, such as "memory"; a cgroup v2 has the files of those that are enabled.
    """
    paths: dict[str, str] = {}
    for line in _lines(_PROC / "cgroup"):
        match line.split(":", 2):
            case _, controllers, path:
                paths.update(dict.fromkeys(controllers.split(","), path))  # cgroup v2 names none
    for line in _lines(_PROC / "mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        match filesystem.split(" ", 2):
            case "cgroup2", _, _:
                name = ""
            case "cgroup", _, options if controller in options.split(","):
                name = controller
            case _:
                continue
        root, mount_point = (re.sub(r"\\(\d{3})", _unescape, field) for field in mount.split(" ")[3:5])
        below = PurePath(os.path.relpath(paths.get(name, root), root))
        if ".." in below.parts:  # moved after the container's start, or a mount of another container's cgroup
            below = PurePath()
        yield from (Path(mount_point) / level for level in (below, *below.parents))


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel, which only escapes \\n of the characters that end a line elsewhere."""
    try:
        return path.read_bytes().decode(errors="surrogateescape").split("\n")[:-1]
    except OSError:  # no cgroups, or no /proc
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
