"""Which vmlinux is believed: files with DWARF, compiled for the test, for a bundled core that has no build id.

The core is of Debian's 5.10.0-32-cloud-amd64. VMCOREINFO of kernels before v5.9 has no build id: here it is renamed,
and the kernel's notes are hidden. What the compiler and the linker make of a kernel's declarations is independent of
the collector.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from drgn import Program

from pipeline.collector.access import btf_files, dwarf, kernel
from pipeline.collector.status import CollectError
from tests.collector.conftest import CORES
from tests.collector.made import overlay

CORE = next(core for core in CORES if core.name == "deb510-n2")
RELEASE = "5.10.0-32-cloud-amd64"
VERSION = "#1 SMP Debian 5.10.223-1 (2024-08-10)"
# Of the core's kernel, in its VMCOREINFO.
BUILD_ID = "e0c94673e97d58a386e99a20572aa7d597d5aa5c"
# Address of init_uts_ns in Debian's System.map of that kernel.
INIT_UTS_NS = 0xFFFFFFFF82613700

# include/linux/types.h, mmzone.h, page-flags.h and utsname.h of v5.10, as far as the checks see them.
STRUCTS = {
    "list_head": "struct list_head { struct list_head *next, *prev; };",
    "free_area": "struct free_area { struct list_head free_list[5]; unsigned long nr_free; };",
    "pageflags": "enum pageflags { PG_slab = 9 };",
    "new_utsname": """struct new_utsname {
        char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
    };""",
    "uts_namespace": "struct uts_namespace { int kref; struct new_utsname name; };",
}

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


def compile_vmlinux(
    path: Path,
    structs: dict[str, str] = STRUCTS,
    banner: str | None = f"Linux version {RELEASE} (debian-kernel) (gcc-10) {VERSION}\\n",
    address: int = INIT_UTS_NS,
    build_id: str | None = None,
) -> str:
    """Compile an ELF file with DWARF of these structs, and with init_uts_ns at an address.

    :param banner: contents of linux_banner, as a C string; None for a file of debug info only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "\n".join(structs.values())
    source += '\n__attribute__((section(".uts"))) struct uts_namespace init_uts_ns = {1};'
    source += "\nstruct free_area area; enum pageflags flag;"
    if banner:
        source += f'\nconst char linux_banner[] = "{banner}";'
    command = ["gcc", "-g", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-xc", "-", "-o", str(path)]
    command += [
        "-Wl,-e,0",
        f"-Wl,--section-start=.uts={address:#x}",
        f"-Wl,--build-id={'0x' + build_id if build_id else 'none'}",
    ]
    subprocess.run(command, input=source.encode(), check=True, timeout=60)
    return str(path)


@pytest.fixture
def core(core_file: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of a core without a build id: also the page with the kernel's notes counts as missing."""
    monkeypatch.setattr(dwarf, "_read_notes", lambda *_: None)
    return core_file


@pytest.fixture
def core_file(tmp_path: Path) -> str:
    """Path of the core without BUILD-ID in its VMCOREINFO."""
    path = tmp_path / "core" / "vmcore"
    path.parent.mkdir()
    path.write_bytes(CORE.path.read_bytes().replace(b"BUILD-ID=", b"BUILD-XX="))
    return str(path)


def address_in_core() -> int:
    """The address of init_uts_ns in the core's kernel, which was moved by a random offset."""
    match = re.search(rb"^KERNELOFFSET=(\w+)$", CORE.kernel.prog["VMCOREINFO"].string_(), re.MULTILINE)
    assert match
    return INIT_UTS_NS + int(match[1], 16)


def refusal(core: str, **options: object) -> CollectError:
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(core, **options)
    return error_info.value


def test_a_vmlinux_with_the_values_of_vmcoreinfo_is_used(core: str, tmp_path: Path) -> None:
    opened_kernel = kernel.open_kernel(core, vmlinux=compile_vmlinux(tmp_path / "vmlinux"))
    assert opened_kernel.types_source == "dwarf"
    assert opened_kernel.prog["init_uts_ns"].name.release.string_().decode() == RELEASE


@pytest.mark.parametrize(
    ("struct_name", "declaration", "difference"),
    [
        ("list_head", "struct list_head { struct list_head *next, *prev, *up; };", "SIZE(list_head) is 24, not 16"),
        ("list_head", "struct list_head { struct list_head *prev, *next; };", "OFFSET(list_head.next) is 8, not 0"),
        ("list_head", "struct list_head { void *first, *prev; };", "OFFSET(list_head.next) is missing, not 0"),
        (
            "free_area",
            "struct free_area { struct list_head free_list[4]; unsigned long nr_free[3]; };",
            "LENGTH(free_area.free_list) is 4, not 5",
        ),
        ("pageflags", "enum pageflags { PG_slab = 8 };", "NUMBER(PG_slab) is 8, not 9"),
        (
            "uts_namespace",
            "struct uts_namespace { long kref; struct new_utsname name; };",
            f"init_uts_ns has no release {RELEASE}",
        ),
    ],
)
def test_a_vmlinux_of_another_configuration_is_refused_with_what_differs(
    core: str, tmp_path: Path, struct_name: str, declaration: str, difference: str
) -> None:
    """Same release, same version, same address of init_uts_ns."""
    vmlinux = compile_vmlinux(tmp_path / "vmlinux", {**STRUCTS, struct_name: declaration})
    error = refusal(core, vmlinux=vmlinux)
    assert error.status == "mismatch"
    assert str(error).startswith(f"{vmlinux} is not the vmlinux of {core}: ")
    assert difference in str(error)
    assert str(error).endswith(f"give the vmlinux of {RELEASE} (package linux-image-{RELEASE}-dbg)")


def test_a_vmlinux_with_another_address_is_refused(core: str, tmp_path: Path) -> None:
    error = refusal(core, vmlinux=compile_vmlinux(tmp_path / "vmlinux", address=INIT_UTS_NS + 0x40))
    assert error.status == "mismatch"
    # KERNELOFFSET of the core is 0x34000000.
    at = address_in_core()
    assert f"init_uts_ns is at {at + 0x40:#x}, not {at:#x}" in str(error)


@pytest.mark.parametrize(
    ("release", "version", "difference"),
    [
        ("5.10.0-30-cloud-amd64", VERSION, f"release is 5.10.0-30-cloud-amd64, not {RELEASE}"),
        (
            RELEASE,
            "#1 SMP Debian 5.10.218-1 (2024-06-01)",
            f"version is #1 SMP Debian 5.10.218-1 (2024-06-01), not {VERSION}",
        ),
    ],
)
def test_a_vmlinux_whose_banner_is_another_is_refused(
    core: str, tmp_path: Path, release: str, version: str, difference: str
) -> None:
    """A distribution rebuilds a kernel without another release; its types may be the same, its addresses are not."""
    banner = f"Linux version {release} (debian-kernel) (gcc-10) {version}\\n"
    error = refusal(core, vmlinux=compile_vmlinux(tmp_path / "vmlinux", banner=banner))
    assert error.status == "mismatch"
    assert difference in str(error)


def test_a_build_id_in_vmcoreinfo_decides(tmp_path: Path) -> None:
    right = compile_vmlinux(tmp_path / "right", build_id=BUILD_ID)
    assert kernel.open_kernel(str(CORE.path), vmlinux=right).types_source == "dwarf"
    other_id = "00" * 20
    error = refusal(str(CORE.path), vmlinux=compile_vmlinux(tmp_path / "wrong", build_id=other_id))
    assert error.status == "mismatch"
    assert f"build id is {other_id}, not {BUILD_ID}" in str(error)


@pytest.mark.parametrize("build_id", [BUILD_ID, "00" * 20])
def test_a_build_id_in_the_kernels_notes_decides(core_file: str, tmp_path: Path, build_id: str) -> None:
    """Kernels before v5.9 have it there only. The notes are as elf(5) says."""
    prog, _ = kernel._attach(core_file, None)
    notes = CORE.kernel.prog.symbol("__start_notes").address
    linux_note = struct.pack("<3I8sI", 6, 4, 0x100, b"Linux\0", 0)
    build_id_note = struct.pack("<3I4s", 4, 20, 3, b"GNU\0") + bytes.fromhex(BUILD_ID)
    overlay(prog, notes, (linux_note + build_id_note).ljust(512, b"\0"))
    vmlinux = compile_vmlinux(tmp_path / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug", build_id=build_id)
    if build_id == BUILD_ID:
        assert (
            kernel.with_types(prog, core_file, debug_dirs=[str(tmp_path)]).prog.main_module().debug_file_path == vmlinux
        )
        return
    with pytest.raises(CollectError, match=f"build id is {build_id}, not {BUILD_ID}") as error_info:
        kernel.with_types(prog, core_file, vmlinux=vmlinux)
    assert error_info.value.status == "mismatch"


@pytest.mark.parametrize(
    "location",
    [
        "usr/lib/debug/lib/modules/{}/vmlinux",  # Fedora, RHEL
        "usr/lib/debug/boot/vmlinux-{}",  # Debian, Ubuntu
        "usr/lib/debug/boot/vmlinux-{}.debug",  # SLES 15
        "usr/lib/debug/usr/lib/modules/{}/vmlinux.debug",  # openSUSE
        "lib/modules/{}/vmlinux",
        "lib/modules/{}/build/vmlinux",
        "boot/vmlinux-{}",
        "{}/vmlinux",
        "vmlinux-{}",
        "vmlinux",
    ],
)
def test_debug_dir_finds_a_vmlinux_by_its_release(core: str, tmp_path: Path, location: str) -> None:
    vmlinux = compile_vmlinux(tmp_path / "debug" / location.format(RELEASE))
    prog = kernel.open_kernel(core, debug_dirs=[str(tmp_path / "debug")]).prog
    assert prog.main_module().debug_file_path == vmlinux


def test_debug_dir_passes_over_another_build_of_the_release(core: str, tmp_path: Path) -> None:
    banner = f"Linux version {RELEASE} (debian-kernel) (gcc-10) #1 SMP Debian 5.10.218-1 (2024-06-01)\\n"
    wrong = compile_vmlinux(tmp_path / "debug/boot" / f"vmlinux-{RELEASE}", banner=banner)
    error = refusal(core, debug_dirs=[str(tmp_path / "debug")])
    assert error.status == "mismatch"
    assert str(error).startswith(f"{wrong} is not the vmlinux of {core}: version is #1 SMP Debian 5.10.218-1")
    right = compile_vmlinux(tmp_path / "debug" / "vmlinux")
    prog = kernel.open_kernel(core, debug_dirs=[str(tmp_path / "debug")]).prog
    assert prog.main_module().debug_file_path == right


def test_debug_dir_without_a_vmlinux_says_where_it_looked(core: str, tmp_path: Path) -> None:
    error = refusal(core, debug_dirs=[str(tmp_path)])
    assert error.status == "no_types"
    assert f"the vmlinux of {RELEASE} (package linux-image-{RELEASE}-dbg) is not below {tmp_path}; " in str(error)
    assert "at lib/modules/RELEASE/vmlinux, " in str(error)


def test_a_vmlinux_in_a_standard_place_is_checked_too(
    core: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(btf_files, "read_own", lambda *_: None)
    monkeypatch.setattr(dwarf, "_STANDARD_DIRECTORIES", (str(tmp_path),))
    error = refusal(core)
    assert error.status == "no_types"
    assert str(error).startswith(f"{core}: this kernel has no BTF (or its core lacks it), ")
    assert str(error).endswith(
        f"give the vmlinux of {RELEASE} (package linux-image-{RELEASE}-dbg) with --vmlinux or --debug-dir"
    )
    structs = {**STRUCTS, "pageflags": "enum pageflags { PG_slab = 8 };"}
    vmlinux = compile_vmlinux(tmp_path / "boot" / f"vmlinux-{RELEASE}", structs)
    assert str(refusal(core)).startswith(f"{vmlinux} is not the vmlinux of {core}: NUMBER(PG_slab) is 8, not 9")
    # The same for an address: the kernel's own symbol table, which is loaded by then, must not hide it.
    compile_vmlinux(Path(vmlinux), address=INIT_UTS_NS + 0x40)
    assert f"init_uts_ns is at {address_in_core() + 0x40:#x}" in str(refusal(core))
    compile_vmlinux(Path(vmlinux))
    assert kernel.open_kernel(core).types_source == "dwarf"


def test_a_file_without_dwarf_is_named(core: str, tmp_path: Path) -> None:
    vmlinux = compile_vmlinux(tmp_path / "vmlinux")
    subprocess.run(["strip", vmlinux], check=True)
    for path in (vmlinux, __file__, tmp_path / "empty"):
        (tmp_path / "empty").touch()
        error = refusal(core, vmlinux=str(path))
        assert error.status == "no_types"
        assert f"{path}: not a vmlinux with DWARF" in str(error)


def test_debug_info_without_the_files_contents_is_checked_by_its_types(core: str, tmp_path: Path) -> None:
    """As `objcopy --only-keep-debug` leaves it: no banner."""
    for structs, is_right in ((STRUCTS, True), ({**STRUCTS, "pageflags": "enum pageflags { PG_slab = 8 };"}, False)):
        vmlinux = compile_vmlinux(tmp_path / "vmlinux", structs)
        subprocess.run(["objcopy", "--only-keep-debug", vmlinux], check=True)
        assert b"Linux version" not in Path(vmlinux).read_bytes()
        if is_right:
            assert isinstance(kernel.open_kernel(core, vmlinux=vmlinux).prog, Program)
        else:
            assert "NUMBER(PG_slab) is 8, not 9" in str(refusal(core, vmlinux=vmlinux))
