"""Kernels without PSI, and with memcgs in cgroup v1: an audit predicts the structs that newer ones have there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import kernels, pairs, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

MAKE_MEMCGS = """
mount -t {mount} memory /sys/fs/cgroup
[ ! -f /sys/fs/cgroup/cgroup.subtree_control ] || echo +memory > /sys/fs/cgroup/cgroup.subtree_control
for i in $(seq 50); do mkdir /sys/fs/cgroup/c$i; done
"""
Boot = Callable[[str, str, str], Path]
CGROUP2, V1, V1_WITH_PERF = "cgroup2", "cgroup -o memory", "cgroup -o memory,perf_event"


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Boot a series with a mount of the memory controller and a command line, and return the core."""

    @functools.cache
    def core(series: str, mount: str, command_line: str) -> Path:
        folder = tmp_path_factory.mktemp("core")
        script = MAKE_MEMCGS.format(mount=mount)
        scripted.take_core(SHAPES["deb61-n2"], kernels.debian_kernel(series), folder, script, command_line)
        return folder / "vmcore"

    return core


@pytest.mark.parametrize(
    ("series", "mount", "lazy_mount", "command_line"),
    [
        ("6.1", CGROUP2, CGROUP2, "psi=0"),
        ("6.12", CGROUP2, CGROUP2, "psi=0"),
        ("7", CGROUP2, CGROUP2, "psi=0"),
        ("6.1", V1, V1, ""),
        ("6.1", V1_WITH_PERF, V1_WITH_PERF, "psi=0"),
        # Debian's kernels since 6.12 have the memory controller in cgroup2 only.
        ("6.12", V1, CGROUP2, ""),
    ],
)
def test_an_upgrade_takes_what_is_predicted(
    boot: Boot, series: str, mount: str, lazy_mount: str, command_line: str
) -> None:
    eager, lazy = boot(pairs.EAGER, mount, command_line), boot(series, lazy_mount, command_line)
    upgraded = {
        row["part"]: row["upgraded_bytes"] for row in pairs.memcg_memory(eager, "--target-kernel", pairs.LAZY[series])
    }
    held = {row["part"]: row["held_bytes"] for row in pairs.memcg_memory(lazy)}
    for part in ("shrinker_info", "memcg_structs", "memcg_percpu"):
        assert upgraded[part] == held[part], part
