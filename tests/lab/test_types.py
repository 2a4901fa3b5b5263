"""Debug info of real kernels for a core that has no build id in VMCOREINFO, as before v5.9: found, checked, refused."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector.access import dwarf, kernel
from pipeline.collector.status import CollectError
from tests.lab import kernels
from tests.lab.boot import take_core
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

SHAPE = SHAPES["deb510-n1"]


@pytest.fixture(scope="module")
def guest_kernel() -> kernels.Kernel:
    return kernels.debian_kernel(SHAPE.series, dwarf=True)


@pytest.fixture(scope="module")
def core(guest_kernel: kernels.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full core whose BUILD-ID is renamed wherever VMCOREINFO lies."""
    path = tmp_path_factory.mktemp("types")
    take_core(SHAPE, guest_kernel, path)
    path /= "vmcore"
    path.chmod(0o600)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for match in re.finditer(rb"BUILD-(ID)=", data):
            data[match.start(1) : match.end(1)] = b"XX"
    return path


@pytest.fixture(scope="module")
def older_vmlinux(guest_kernel: kernels.Kernel) -> Path:
    """The vmlinux of the release of the same series before the guest's."""
    with kernels.lock(kernels.CACHE, f"{kernels.SUITES[SHAPE.series]}-amd64"):
        packages = kernels.source(SHAPE.series, "amd64", None, kernels.CACHE)
        pattern = re.compile(rf"linux-image-({re.escape(SHAPE.series)}\..*-cloud-amd64)-dbg")
        releases = [match[1] for name in packages.versions() if (match := pattern.fullmatch(name))]
        releases.remove(guest_kernel.release)
        if not releases:
            pytest.skip("needs another release of the series on the mirror")
        release = max(releases, key=kernels.version_key)
        root = kernels.CACHE / "kernels" / release
        kernels.unpack(packages, f"linux-image-{release}-dbg", root, exclude="*.ko*")
    return root / f"usr/lib/debug/boot/vmlinux-{release}"


def collect(core: Path, *options: str | Path) -> list[dict[str, Any]]:
    """The collector's lines without the table of targets, which has times."""
    command = [sys.executable, "-m", "pipeline.collector", *options, core]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return [record for record in records if record.get("table") != "targets"]


def test_the_build_id_is_found_in_the_kernels_notes(core: Path, guest_kernel: kernels.Kernel) -> None:
    notes = subprocess.run(["readelf", "-n", guest_kernel.vmlinux or ""], capture_output=True, text=True).stdout
    prog, _ = kernel._attach(str(core), None)
    build_id = dwarf._read_build_id(prog)
    assert build_id is not None
    assert f"Build ID: {build_id.hex()}\n" in notes


def test_the_vmlinux_of_the_release_is_found_and_gives_the_rows_of_btf(
    core: Path, guest_kernel: kernels.Kernel
) -> None:
    root = kernels.CACHE / "kernels" / guest_kernel.release
    rows = collect(core)
    assert "end" in rows[-1]
    for debug_dir in (root, root / "usr/lib/debug"):
        assert collect(core, "--debug-dir", debug_dir) == rows


def test_the_vmlinux_of_another_release_never_gives_a_number(core: Path, older_vmlinux: Path) -> None:
    [record] = collect(core, "--vmlinux", older_vmlinux)
    assert record["error"]["status"] == "mismatch"
    assert record["error"]["error"].startswith(f"{older_vmlinux} is not the vmlinux of {core}: release is ")


def test_addresses_alone_tell_two_releases_apart(
    core: Path, older_vmlinux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a vmlinux that has neither a banner nor a build id. init_uts_ns does not move."""
    monkeypatch.setattr(dwarf, "_file_differences", lambda *_: [])
    monkeypatch.setattr(dwarf, "_read_build_id", lambda _: None)
    monkeypatch.setattr(dwarf, "_read_notes", lambda *_: None)
    with pytest.raises(CollectError, match=r"is at 0xf\w+, not 0xf\w+") as error_info:
        kernel.open_kernel(str(core), vmlinux=str(older_vmlinux))
    assert error_info.value.status == "mismatch"
    assert "init_uts_ns" not in str(error_info.value)
