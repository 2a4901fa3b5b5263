"""Which BTF is believed: a kernel's own, and files below --btf-dir. The bundled cores stand for kernels without BTF."""

from __future__ import annotations

import os
import resource
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from drgn import Program, Symbol, TypeKind, sizeof

from pipeline.collector.access import btf_files, kallsyms, kernel
from pipeline.collector.access.btf import Btf, BtfError
from pipeline.collector.status import CollectError
from tests.collector.conftest import CORES, Core

CORE, OTHER_CORE = (next(core for core in CORES if core.name == name) for name in ("deb510-n2", "deb61-n2"))
RELEASE = "5.10.0-32-cloud-amd64"


def btf_of(core: Core) -> bytes:
    """The bytes between the symbols that the guest's own /proc/kallsyms names."""
    prog = core.kernel.prog
    start, stop = prog.symbol("__start_BTF").address, prog.symbol("__stop_BTF").address
    return prog.read(start, stop - start)


@pytest.fixture
def without_btf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cores do not have BTF of their own, and this machine has no vmlinux of theirs."""
    for core in CORES:
        assert core.kernel  # opened with its own
    with monkeypatch.context() as patch:
        patch.setattr(btf_files, "read_own", lambda *_: None)
        yield


def open_core(btf_dir: Path, core: Core = CORE) -> kernel.Kernel:
    return kernel.open_kernel(str(core.path), btf_dir=str(btf_dir))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_btf_lies_between_the_symbols_of_kernels_before_5_7(monkeypatch: pytest.MonkeyPatch) -> None:
    load = kallsyms.load
    new_names = {"_binary__btf_vmlinux_bin_start": "__start_BTF", "_binary__btf_vmlinux_bin_end": "__stop_BTF"}

    def load_as_before(prog: Program, system_maps: Any) -> Any:
        find_symbols = load(prog, system_maps)

        def find(prog: Program, name: str | None, address: int | None, find_one: bool) -> list[Symbol]:
            return (
                []
                if name in new_names.values()
                else find_symbols(prog, new_names.get(str(name), name), address, find_one)
            )

        return find

    monkeypatch.setattr(kallsyms, "load", load_as_before)
    opened_kernel = kernel.open_kernel(str(CORE.path))
    assert opened_kernel.types_source == "btf"
    # SIZE(page) of VMCOREINFO.
    assert sizeof(opened_kernel.prog.type("struct page")) == 64


@pytest.mark.usefixtures("without_btf")
def test_a_file_serves_a_kernel_without_btf_of_its_own(core: Core, tmp_path: Path) -> None:
    arch = {"aarch64": "arm64"}.get(core.target["arch"], core.target["arch"])
    release = core.target["kernel_release"]
    write(tmp_path / "debian" / arch / f"{release}.btf", btf_of(core))
    assert open_core(tmp_path, core).types_source == "btf-dir"
    with pytest.raises(CollectError, match=f"nor is there one for its release below {tmp_path}/none") as error_info:
        open_core(tmp_path / "none", core)
    assert error_info.value.status == "no_types"


@pytest.mark.usefixtures("without_btf")
def test_a_compressed_file_serves_too(tmp_path: Path) -> None:
    file = write(tmp_path / f"{RELEASE}.btf", btf_of(CORE))
    with tarfile.open(tmp_path / f"{RELEASE}.btf.tar.xz", "w:xz", preset=0) as archive:
        archive.add(file, file.name)
    file.unlink()
    assert open_core(tmp_path).types_source == "btf-dir"


@pytest.mark.usefixtures("without_btf")
@pytest.mark.parametrize("wrong", ["a", "z"])
def test_a_file_of_another_build_is_passed_over(tmp_path: Path, wrong: str) -> None:
    wrong_file = write(tmp_path / wrong / f"{RELEASE}.btf", btf_of(OTHER_CORE))
    with pytest.raises(CollectError, match=f"{wrong_file} is not the BTF of {CORE.path}: ") as error_info:
        open_core(tmp_path)
    assert error_info.value.status == "mismatch"
    write(tmp_path / "m" / f"{RELEASE}.btf", btf_of(CORE))
    # SIZE(zone) of VMCOREINFO; 6.1 has another.
    assert sizeof(open_core(tmp_path).prog.type("struct zone")) == 1472


@pytest.mark.usefixtures("without_btf")
@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", b"not BTF" * 100])
def test_a_damaged_file_is_passed_over(tmp_path: Path, data: bytes) -> None:
    damaged = write(tmp_path / "a" / f"{RELEASE}.btf", data)
    write(tmp_path / "b" / f"{RELEASE}.btf.tar.xz", data)
    with pytest.raises(CollectError, match=str(tmp_path)) as error_info:
        open_core(tmp_path)
    assert error_info.value.status == "no_types"
    write(damaged.parents[1] / "z" / f"{RELEASE}.btf", btf_of(CORE))
    assert open_core(tmp_path).types_source == "btf-dir"


@pytest.mark.usefixtures("without_btf")
def test_a_file_that_asks_for_more_memory_than_there_is_is_passed_over(tmp_path: Path) -> None:
    """xz's header has the size of the dictionary (the .xz file format, 5.3.1): here 4 GiB, as of another file."""
    file = tmp_path / f"{RELEASE}.btf.tar.xz"
    with tarfile.open(file, "w:xz", preset=0) as archive:
        archive.addfile(tarfile.TarInfo(f"{RELEASE}.btf"))
    content = bytearray(file.read_bytes())
    assert content[12:16] == b"\x02\0\x21\x01", "a block of LZMA2"
    content[16] = 40
    content[20:24] = zlib.crc32(content[12:20]).to_bytes(4, "little")
    file.write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, limits[1]))
    try:
        with pytest.raises(CollectError, match=str(file)) as error_info:
            open_core(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert (error_info.value.status, error_info.value.error_type) == ("no_types", "MemoryError")


def typedefs(*targets: int) -> bytes:
    """A BTF of typedefs of these types (Documentation/bpf/btf.rst)."""
    types = b"".join(struct.pack("<3I", 1, 8 << 24, target) for target in targets)
    return struct.pack("<HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), 5) + types + b"\0u64\0"


@pytest.mark.parametrize("targets", [(1,), (2, 1), (7,), range(2, 5000)], ids=["itself", "a cycle", "none", "a chain"])
def test_a_type_that_leads_nowhere_is_damaged(targets: Sequence[int]) -> None:
    types = Btf(Program(CORE.kernel.prog.platform), typedefs(*targets))
    with pytest.raises(BtfError, match=r"type \d+ of BTF is damaged"):
        types.find_type(None, {TypeKind.TYPEDEF}, "u64", None)


@pytest.mark.usefixtures("without_btf")
def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / f"{RELEASE}.btf")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / f"{RELEASE}.btf.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo(f"{RELEASE}.btf")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    with pytest.raises(CollectError, match=r"is not a file|not a regular file") as error_info:
        open_core(tmp_path)
    assert error_info.value.status == "no_types"
    write(tmp_path / "c" / f"{RELEASE}.btf", btf_of(CORE))
    assert open_core(tmp_path).types_source == "btf-dir"


@pytest.mark.usefixtures("without_btf")
def test_the_start_of_a_word_names_no_distribution(tmp_path: Path) -> None:
    """`a` is in `cloud-amd64`, and `deb` in `Debian`."""
    blob = btf_of(CORE)
    write(tmp_path / "a" / f"{RELEASE}.btf", blob + bytes(4))
    write(tmp_path / "deb" / f"{RELEASE}.btf", blob + bytes(8))
    write(tmp_path / "debian" / f"{RELEASE}.btf", blob)
    assert btf_files.read_from_dir(CORE.kernel.prog, str(CORE.path), str(tmp_path)) == blob


@pytest.mark.usefixtures("without_btf")
def test_of_two_files_that_fit_that_of_the_kernels_distribution_is_taken(tmp_path: Path) -> None:
    """The version of the core's kernel names Debian: `#1 SMP Debian 5.10.223-1 (2024-08-10)`."""
    blob = btf_of(CORE)
    write(tmp_path / "ubuntu/18.04/x86_64" / f"{RELEASE}.btf", blob + bytes(4))
    write(tmp_path / "debian/11/x86_64" / f"{RELEASE}.btf", blob)
    prog = CORE.kernel.prog
    assert btf_files.read_from_dir(prog, str(CORE.path), str(tmp_path)) == blob


@pytest.mark.usefixtures("without_btf")
def test_two_files_that_fit_and_differ_are_refused_with_both_names(tmp_path: Path) -> None:
    blob = btf_of(CORE)
    first = write(tmp_path / "ubuntu/18.04/x86_64" / f"{RELEASE}.btf", blob + bytes(4))
    second = write(tmp_path / "ubuntu/20.04/x86_64" / f"{RELEASE}.btf", blob)
    with pytest.raises(CollectError, match=f"{first} and {second} both fit {CORE.path} and differ") as error_info:
        open_core(tmp_path)
    assert error_info.value.status == "mismatch"
    write(first, blob)
    assert open_core(tmp_path).types_source == "btf-dir"


def test_ubuntus_version_tells_its_releases_apart() -> None:
    build = btf_files.build_check.Build("5.4.0-42-generic", "#46~18.04.1-Ubuntu SMP Fri Jul 10 07:21:24 UTC 2020")
    paths = [f"ubuntu/{version}/x86_64/{build.release}.btf" for version in ("18.04", "20.04")]
    assert [btf_files._score(path, build) for path in paths] == [2, 1]
