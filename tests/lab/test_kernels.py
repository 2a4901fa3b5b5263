"""The sources of the lab's kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import kernels
from tests.lab.kernels import LabError

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.fixture(autouse=True)
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "own_arch", lambda: "amd64")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "sources.list",
            "# deb http://old.example/debian x main\ndeb [signed-by=/k] http://a.example/debian trixie main\n",
        ),
        ("sources.list.d/debian.sources", "Types: deb\nURIs: http://a.example/debian\nSuites: trixie\n"),
        (
            "sources.list.d/more.list",
            "deb http://a.example/debian-security x main\ndeb http://a.example/debian x main\n",
        ),
    ],
)
def test_mirror_is_the_one_of_the_machines_apt(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text)
    assert kernels.debian_uri(tmp_path) == "http://a.example/debian"


def test_a_machine_without_a_debian_mirror_is_told_to_use_debs(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://a.example/ubuntu noble main\n")
    with pytest.raises(LabError, match="--debs"):
        kernels.debian_uri(tmp_path)


def make_deb(folder: Path, name: str, version: str, files: dict[str, str], arch: str = "amd64") -> None:
    root = folder / f"{name}-{arch}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: lab <lab@example.org>\n"
        "Description: x\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    subprocess.run(
        ["dpkg-deb", "-Znone", "--build", root, folder / f"{name}_{version}_{arch}.deb"], check=True, stdout=-3
    )


@needs_dpkg
def test_newest_kernel_of_the_series_is_taken_from_a_folder(tmp_path: Path) -> None:
    for number in ("9", "32"):
        release = f"5.10.0-{number}-cloud-amd64"
        files = {f"boot/vmlinuz-{release}": number, f"lib/modules/{release}/x.ko": ""}
        make_deb(tmp_path, f"linux-image-{release}", f"5.10.{number}-1", files)
    make_deb(tmp_path, "linux-image-5.10.0-99-amd64", "5.10.99-1", {})
    kernel = kernels.get("5.10", kernels.Folder(tmp_path, "amd64"), tmp_path / "cache", dwarf=False)
    assert (kernel.release, kernel.vmlinuz.read_text()) == ("5.10.0-32-cloud-amd64", "32")


@pytest.mark.parametrize(
    ("arch", "flavour", "release"),
    [
        ("amd64", "cloud", "5.10.0-32-cloud-amd64"),
        ("amd64", "generic", "5.10.0-32-amd64"),
        ("amd64", "rt", "5.10.0-32-rt-amd64"),
        ("ppc64el", "generic", "5.10.0-32-powerpc64le"),
    ],
)
def test_a_flavour_is_not_taken_for_another(arch: str, flavour: str, release: str) -> None:
    ends = ("cloud-amd64", "amd64", "rt-amd64", "amd64-dbg", "rt-amd64-dbg", "amd64-unsigned", "powerpc64le")
    versions = {f"linux-image-5.10.0-{number}-{end}": f"5.10.{number}-1" for number in (9, 32) for end in ends}
    assert kernels.newest("5.10", arch, versions, flavour) == release


@needs_dpkg
def test_files_of_a_split_kernel_are_put_together(tmp_path: Path) -> None:
    """Since 7.x the image package is empty: linux-binary has the kernel, and linux-modules has the modules."""
    release = "7.2.12+deb14-cloud-amd64"
    make_deb(tmp_path, f"linux-image-{release}", "7.2.12-1", {})
    make_deb(tmp_path, f"linux-binary-{release}", "7.2.12-1", {f"usr/lib/modules/{release}/vmlinuz": "kernel"})
    make_deb(tmp_path, f"linux-modules-{release}", "7.2.12-1", {f"usr/lib/modules/{release}/loop.ko": "module"})
    kernel = kernels.get("7", kernels.Folder(tmp_path, "amd64"), tmp_path / "cache", dwarf=False)
    assert kernel.vmlinuz.read_text() == "kernel"
    assert [path.read_text() for path in kernel.modules.rglob("*.ko")] == ["module"]


@needs_dpkg
def test_another_architecture_brings_its_own_busybox(tmp_path: Path) -> None:
    release = "5.10.0-32-cloud-riscv64"
    files = {f"boot/vmlinuz-{release}": "kernel", f"lib/modules/{release}/x.ko": ""}
    make_deb(tmp_path, f"linux-image-{release}", "5.10.223-1", files, arch="riscv64")
    for arch in ("amd64", "riscv64"):
        make_deb(tmp_path, "busybox-static", "1.30.1-6", {"bin/busybox": arch}, arch)
    kernel = kernels.get("5.10", kernels.Folder(tmp_path, "riscv64"), tmp_path / "cache", dwarf=False)
    assert (kernel.release, kernel.busybox.read_text()) == (release, "riscv64")


@needs_dpkg
def test_the_mirror_is_not_asked_for_what_the_folder_has(tmp_path: Path) -> None:
    release = "5.10.0-32-cloud-amd64"
    make_deb(tmp_path, f"linux-image-{release}", "5.10.223-1", {})
    assert str(kernels.source("5.10", "amd64", tmp_path, tmp_path / "cache")) == str(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_the_kernel_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"linux-image-6\.1\..* add its \.deb"):
        kernels.get("6.1", kernels.Folder(tmp_path, "amd64"), tmp_path / "cache", dwarf=False)


def test_processes_take_turns_to_fill_the_cache(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.lab import kernels
print("ready", flush=True)
with kernels.lock(Path(sys.argv[1]), "part"):
    print(Path(sys.argv[1], "filled").exists())
"""
    with kernels.lock(tmp_path, "part"):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        assert other.stdout
        other.stdout.readline()
        (tmp_path / "filled").touch()
    assert other.communicate()[0] == b"True\n"


@needs_dpkg
def test_a_kernel_that_the_mirror_lists_but_does_not_have_gives_way_to_an_older_one(tmp_path: Path) -> None:
    class Incomplete(kernels.Folder):
        def deb(self, name: str) -> Path:
            if "-99-" in name:
                raise kernels.NotFetchedError(f"{name}: 404")
            return super().deb(name)

    for number in ("32", "99"):
        release = f"5.10.0-{number}-cloud-amd64"
        files = {f"boot/vmlinuz-{release}": number, f"lib/modules/{release}/x.ko": ""}
        make_deb(tmp_path, f"linux-image-{release}", f"5.10.{number}-1", files)
    kernel = kernels.get("5.10", Incomplete(tmp_path, "amd64"), tmp_path / "cache", dwarf=False)
    assert kernel.release == "5.10.0-32-cloud-amd64"
    with pytest.raises(kernels.NotFetchedError, match="404"):
        kernels.get_release("5.10.0-99-cloud-amd64", Incomplete(tmp_path, "amd64"), tmp_path / "cache2", dwarf=False)
