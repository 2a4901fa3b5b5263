"""The memory and CPUs of a process in a container, in real cgroups and in trees of files as the kernel shows them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import limits
from tests.cgroups import memory_cgroup

MIB = 1 << 20
NO_LIMIT = "9223372036854771712"  # of cgroup v1: PAGE_COUNTER_MAX pages


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 4 GiB on which this process may use 4 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 7})
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)


@pytest.fixture
def process(machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Show this process the given cgroups, mounts and files; a mount is "ROOT MOUNTPOINT FSTYPE OPTIONS"."""

    def show(cgroups: list[str], mounts: list[str], files: dict[str, str]) -> None:
        lines = []
        for mount in mounts:
            root, mount_point, fstype, options = mount.split(" ")
            lines.append(f"31 23 0:28 {root} {tmp_path}{mount_point} rw shared:9 - {fstype} {fstype} {options}\n")
        (tmp_path / "mountinfo").write_bytes(os.fsencode("".join(lines)))
        (tmp_path / "cgroup").write_bytes(os.fsencode("".join(f"{line}\n" for line in cgroups)))
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        monkeypatch.setattr(limits, "_PROC", tmp_path)

    return show


V1 = ["4:memory:/docker/1f", "3:cpu,cpuacct:/docker/1f", "1:name=systemd:/docker/1f"]
V1_MOUNTS = ["{} /cg/memory cgroup rw,memory", "{} /cg/cpu,cpuacct cgroup rw,cpu,cpuacct"]


@pytest.mark.parametrize(
    ("cgroups", "mounts", "files", "mib"),
    [
        (["0::/a/b"], ["/ /cg cgroup2 rw"], {"cg/a/memory.max": 700 * MIB, "cg/a/b/memory.max": "max"}, 700),
        (["0::/a/b"], ["/ /cg cgroup2 rw"], {"cg/a/memory.max": 700 * MIB, "cg/a/b/memory.high": 500 * MIB}, 500),
        # A container with a namespace of cgroups, and one without; a sibling's limit is not its own.
        (["0::/"], ["/ /cg cgroup2 rw,nsdelegate"], {"cg/memory.max": 700 * MIB, "cg/a/memory.max": MIB}, 700),
        (["0::/kube/pod/c"], ["/kube/pod/c /cg cgroup2 rw"], {"cg/memory.max": 700 * MIB}, 700),
        (["0::/../moved"], ["/ /cg cgroup2 rw"], {"cg/memory.max": 700 * MIB, "moved/memory.max": MIB}, 700),
        (["0::/a b"], ["/a\\040b /c\\040g cgroup2 rw"], {"c g/memory.max": 700 * MIB}, 700),
        (V1, [m.format("/") for m in V1_MOUNTS], {"cg/memory/docker/1f/memory.limit_in_bytes": 700 * MIB}, 700),
        (V1, [m.format("/docker/1f") for m in V1_MOUNTS], {"cg/memory/memory.limit_in_bytes": 700 * MIB}, 700),
        (V1, [m.format("/docker/1f") for m in V1_MOUNTS], {"cg/memory/memory.limit_in_bytes": NO_LIMIT}, 4096),
        # The limit of a pod, above what its container sees.
        (
            V1,
            [m.format("/docker/1f") for m in V1_MOUNTS],
            {
                "cg/memory/memory.limit_in_bytes": NO_LIMIT,
                "cg/memory/memory.stat": f"cache 5\nhierarchical_memory_limit {300 * MIB}\ntotal_cache 5",
            },
            300,
        ),
        # Both versions: cgroup v2 has no memory controller.
        (
            [*V1, "0::/docker/1f"],
            [*(m.format("/") for m in V1_MOUNTS), "/ /cg/unified cgroup2 rw"],
            {"cg/memory/docker/memory.limit_in_bytes": 600 * MIB, "cg/unified/docker/1f/cgroup.procs": ""},
            600,
        ),
        ([], [], {}, 4096),
        # Ends of lines for Python, which the kernel does not escape; a name may even have the bytes of no text.
        *(
            (
                [f"0::/a{end}b"],
                [f"/ /t{end}/u tmpfs rw", "/ /cg cgroup2 rw"],
                {f"cg/a{end}b/memory.max": 700 * MIB},
                700,
            )
            for end in ("\u2028", "\x85", "\x0c", "\r", "\udcff")
        ),
        (["0::/a", "?"], ["/ /cg cgroup2 rw", "/ /g ? ?"], {"cg/a/memory.max": 700 * MIB}, 700),
    ],
)
def test_memory_is_that_of_the_strictest_cgroup(process, cgroups, mounts, files, mib) -> None:
    """The files are those of Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst."""
    process(cgroups, mounts, files)
    assert limits.memory_bytes() == mib * MIB


@pytest.mark.parametrize(
    ("cgroups", "mounts", "files", "count"),
    [
        (["0::/a"], ["/ /cg cgroup2 rw"], {"cg/a/cpu.max": "350000 100000"}, 3),
        (["0::/a"], ["/ /cg cgroup2 rw"], {"cg/a/cpu.max": "50000 100000"}, 1),
        (["0::/a"], ["/ /cg cgroup2 rw"], {"cg/a/cpu.max": "max 100000"}, 4),
        (["0::/a/b"], ["/ /cg cgroup2 rw"], {"cg/a/cpu.max": "200000 100000", "cg/a/b/cpu.max": "max 100000"}, 2),
        (
            V1,
            [m.format("/docker/1f") for m in V1_MOUNTS],
            {"cg/cpu,cpuacct/cpu.cfs_quota_us": "200000", "cg/cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            V1,
            [m.format("/") for m in V1_MOUNTS],
            {
                "cg/cpu,cpuacct/docker/1f/cpu.cfs_quota_us": "-1",
                "cg/cpu,cpuacct/docker/1f/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        ([], [], {}, 4),
    ],
)
def test_cpus_are_those_of_the_strictest_quota(process, cgroups, mounts, files, count) -> None:
    """The files are those of Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst."""
    process(cgroups, mounts, files)
    assert limits.cpus() == count


@pytest.mark.parametrize(("mib", "count"), [(4096, 4), (700, 2), (100, 1)])
def test_a_container_with_little_memory_collects_fewer_targets_at_a_time(process, mib, count) -> None:
    process(["0::/"], ["/ /cg cgroup2 rw"], {"cg/memory.max": mib * MIB})
    assert limits.workers() == count


@pytest.mark.parametrize("kind", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_a_resource_limit_counts(kind: str) -> None:
    number = getattr(resource, kind)
    assert memory_of_child(lambda: resource.setrlimit(number, (1 << 30, 1 << 30))) == 1 << 30


def memory_of_child(prepare=None) -> int:
    program = "from pipeline.common import limits; print(limits.memory_bytes())"
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[2]
    return int(subprocess.run(command, cwd=root, preexec_fn=prepare, capture_output=True, check=True).stdout)


def test_a_limit_above_the_own_cgroup_of_a_running_kernel_counts() -> None:
    with memory_cgroup(700 * MIB) as cgroup:
        assert memory_of_child(lambda: (cgroup / "cgroup.procs").write_text("0")) == 700 * MIB


@pytest.mark.parametrize("end", ["\u2028", "\x0c"])
def test_names_that_python_takes_for_several_lines_are_read_from_a_running_kernel(tmp_path: Path, end: str) -> None:
    mount_point = tmp_path / f"a{end}b"
    mount_point.mkdir()
    with memory_cgroup(700 * MIB) as cgroup:
        inner = cgroup / f"c{end}d"
        inner.mkdir()
        program = "from pipeline.common import limits; print(limits.memory_bytes())"
        script = 'set -e; mount -t tmpfs none "$1"; echo 0 > "$2"/cgroup.procs; shift 2; exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "-", str(mount_point), str(inner)]
        process = subprocess.run(
            [*command, sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        inner.rmdir()
    if "unshare: " in process.stderr or "mount: " in process.stderr:
        pytest.skip("needs mount namespaces")
    assert process.stdout == f"{700 * MIB}\n", process.stderr
