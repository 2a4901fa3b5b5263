"""Full cores of kernels booted for the test: DWARF and BTF give the same rows, which agree with the guest's report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import campaign
from tests.collector.test_truth import TOTALS
from tests.lab import kdump, kernels
from tests.lab.boot import take_core
from tests.lab.bundle import INCIDENTAL_COLUMNS, audit
from tests.lab.kernels import own_arch
from tests.lab.shapes import LAB_SHAPES, SHAPES

pytestmark = pytest.mark.lab

DUMPS = {"7": "makedumpfile -c -d 23 /proc/vmcore vmcore"}
"""Commands of the capture kernel by series, instead of kdump.DUMP. makedumpfile 1.7.8 takes slab pages of 7.2 for pages
of processes, and leaves them out at the levels with bit 8: such a dump is refused."""


@pytest.fixture(
    scope="module",
    params=[
        *("deb510-n2", "deb510-arm64", "deb61-n2", "deb612-n4", "deb7-n2"),
        *campaign.sample([shape.name for shape in LAB_SHAPES], 1),
    ],
)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The folder of a full core and the guest's report, the vmlinux with DWARF, and the shape."""
    shape = SHAPES[request.param]
    kernel = kernels.debian_kernel(shape.series, shape.arch, dwarf=True, flavour=shape.flavour)
    folder = tmp_path_factory.mktemp(shape.name)
    if shape.arch == own_arch():
        kdump.take_core(shape, kernel, folder, DUMPS.get(shape.series, kdump.DUMP))
    else:
        take_core(shape, kernel, folder)
    assert kernel.vmlinux
    return folder, kernel.vmlinux, shape


def inspect(core: Path, *options: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline", "inspect", core, "--json", *options]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return figures


def collect(core: Path, *options: str | Path) -> list[str]:
    """Every row of the collector except that of targets, which has times."""
    command = [sys.executable, "-m", "pipeline.collector", *options, core]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if line and '"table":"targets"' not in line]


def test_dwarf_and_btf_give_the_same_rows(guest: tuple[Path, Path, Any]) -> None:
    folder, vmlinux, _ = guest
    core = folder / "vmcore"
    assert collect(core) == collect(core, "--vmlinux", vmlinux)
    btf, dwarf = inspect(core), inspect(core, "--vmlinux", vmlinux)
    assert (btf.pop("types_source"), dwarf.pop("types_source")) == ("btf", "dwarf")
    for column in (*INCIDENTAL_COLUMNS, "started_at", "duration_ms"):
        btf.pop(column), dwarf.pop(column)
    assert btf == dwarf


def test_a_kdump_has_the_rows_of_the_memory(guest: tuple[Path, Path, Any]) -> None:
    folder, _, shape = guest
    if shape.arch != own_arch():
        pytest.skip(f"needs kexec for {shape.arch}")
    assert audit(folder / "kdump/vmcore") == audit(folder / "vmcore")


def test_the_audit_is_what_the_guest_says(guest: tuple[Path, Path, Any]) -> None:
    folder, _, shape = guest
    figures = inspect(folder / "vmcore")
    stat = dict(line.split() for line in (folder / "truth/cgroup.stat").read_text().splitlines())
    assert figures["online_memcgs"] == int(stat["nr_descendants"])
    assert figures["dying_memcgs"] == int(stat["nr_dying_descendants"]) == shape.dying
    assert len(figures["possible_nodes"]) == shape.nodes
    meminfo = dict(re.findall(r"^(\w+): +(\d+) kB", (folder / "truth/meminfo").read_text(), re.MULTILINE))
    for column, name in TOTALS.items():
        assert figures[column] == int(meminfo[name]) << 10, name
    slabinfo = (folder / "truth/slabinfo").read_text().splitlines()
    active = {line.split()[0]: int(line.split()[1]) for line in slabinfo[2:]}
    assert 0 < figures["list_lru_one_objects"] < active[figures["slab_cache"]]
    assert figures["xa_node_bytes"] <= active["radix_tree_node"] * 584
    if shape.series == "5.10":
        assert figures["slab_cache"] == {"amd64": "kmalloc-32", "arm64": "kmalloc-128"}[shape.arch]
        assert figures["list_lru_one_objects"] > 0.9 * active[figures["slab_cache"]]
        assert figures["wasted_bytes"] > 0
    else:
        assert figures["wasted_bytes"] == 0
