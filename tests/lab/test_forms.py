"""The dump that QEMU writes flattened has the rows of the one that it writes as ELF at the same moment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.fanout import runner
from pipeline.inventory import Target
from tests.lab import boot, kernels
from tests.lab.boot import Monitor
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

COST_COLUMNS = {"reads", "read_bytes", "peak_rss_bytes", "core_id"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a guest's dump as ELF, `vmcore`, and as kdump-zlib, `flat`."""
    folder = tmp_path_factory.mktemp("forms")

    def dump_flattened(work: Path) -> None:
        with Monitor(work / "qmp") as monitor:
            monitor.call("stop")
            monitor.call("dump-guest-memory", paging=False, protocol=f"file:{folder / 'flat'}", format="kdump-zlib")

    boot.take_core(SHAPES["deb510-n1"], kernels.debian_kernel("5.10"), folder, idle_action=dump_flattened)
    return folder


def rows(core: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a core without what the audit cost, and core_id, which has the size of the file."""
    result = runner.run(Target("t", "vmcore", str(core)), 1, runner.Limits())
    assert result["attempt"]["status"] == "ok", result["attempt"]
    columns = {name: value for name, value in result["columns"].items() if name not in COST_COLUMNS}
    return columns, result["tables"]


def test_the_flattened_dump(folder: Path) -> None:
    assert (folder / "flat").read_bytes().startswith(b"makedumpfile\0")
    assert rows(folder / "flat") == rows(folder / "vmcore")


def test_the_flattened_dump_rearranged(folder: Path) -> None:
    if shutil.which("makedumpfile") is None:
        pytest.skip("needs makedumpfile")
    with (folder / "flat").open("rb") as file:
        subprocess.run(["makedumpfile", "-R", folder / "new"], stdin=file, check=True, capture_output=True)
    assert rows(folder / "new") == rows(folder / "vmcore")


def test_the_compressed_dump(folder: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("needs zstd")
    subprocess.run(["zstd", "-q", folder / "vmcore"], check=True)
    assert rows(folder / "vmcore.zst") == rows(folder / "vmcore")
