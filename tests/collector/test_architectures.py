"""Kernels of other architectures are refused by name, before anything else is tried, on every transport."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from drgn import Architecture, Platform, Program

from pipeline.collector import __main__ as collector
from pipeline.collector import architectures
from pipeline.collector.access import kernel, ppc64
from pipeline.collector.status import CollectError
from pipeline.fanout.runner import frame
from tests.lab.reduce import SmallCore

# e_machine, EI_CLASS and EI_DATA (elf.h), and the name in the message.
ELF_CORES = {
    "i386": (3, 1, 1, "i386"),
    "x86_64 with --elf32-core-headers": (62, 1, 1, "x86_64 (32 bits, little-endian)"),
    "riscv64": (243, 2, 1, "riscv (64 bits, little-endian)"),
    "arm": (40, 1, 1, "arm (32 bits, little-endian)"),
    "mips64": (8, 2, 2, "mips (64 bits, big-endian)"),
    "sparc64": (43, 2, 2, "sparc64"),
    "aarch64_be": (183, 2, 2, "aarch64 (64 bits, big-endian)"),
    "ppc": (20, 1, 2, "ppc (32 bits, big-endian)"),
    "s390": (22, 1, 2, "s390 (32 bits, big-endian)"),
    "loongarch64": (258, 2, 1, "loongarch"),
    "alpha": (0x9026, 2, 1, "ELF machine 36902"),
}


def elf_core(machine: int, elf_class: int, data: int, elf_type: int = 4) -> bytes:
    order = "<>"[data - 1]
    return (
        b"\x7fELF" + bytes([elf_class, data, 1]) + bytes(9) + struct.pack(f"{order}2H", elf_type, machine) + bytes(80)
    )


def kdump(machine: bytes) -> bytes:
    """The header of a kdump-compressed core: signature, version, utsname (six fields of 65 bytes)."""
    utsname = b"".join(field.ljust(65, b"\0") for field in (b"Linux", b"host", b"6.1.0", b"#1 SMP", machine, b""))
    return (b"KDUMP   " + struct.pack("<i", 6) + utsname).ljust(3 * 4096, b"\0")


def refusal(path: Path) -> str:
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(str(path))
    assert (error_info.value.status, error_info.value.error_type) == ("bad_core", "UnsupportedArchitecture")
    return str(error_info.value)


@pytest.mark.parametrize(("machine", "elf_class", "data", "name"), ELF_CORES.values(), ids=ELF_CORES)
def test_an_elf_core_of_another_architecture(
    tmp_path: Path, machine: int, elf_class: int, data: int, name: str
) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_core(machine, elf_class, data))
    message = refusal(path)
    assert message.startswith(f"{path}: this architecture is not supported: {name}")
    assert message.endswith("supported are x86_64, aarch64, ppc64le, s390x")


@pytest.mark.parametrize("machine", ["i686", "armv7l", "riscv64", "ppc64", "s390", "mips64"])
def test_a_kdump_of_another_architecture(tmp_path: Path, machine: str) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(kdump(machine.encode()))
    assert f": this architecture is not supported: {machine};" in refusal(path)


@pytest.mark.parametrize(
    ("name", "order", "machine"), [("S390X", ">", "s390x"), ("Unknown", "<", "aarch64"), ("Unknown", ">", "ppc64le")]
)
def test_a_kdump_of_qemu_has_other_names(name: str, order: str, machine: str) -> None:
    """ELF_MACHINE_UNAME of QEMU 7.2, and the byte order of its header."""
    head = b"KDUMP   " + struct.pack(f"{order}i", 6)
    assert architectures.kdump_machine(name, head, "vmcore") == machine


def test_another_elf_file_is_not_blamed_for_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_core(243, 2, 1, elf_type=2))
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(str(path))
    assert error_info.value.error_type != "UnsupportedArchitecture"


PPC64_VMCOREINFO = (
    b"OSRELEASE=6.1.0\nPAGESIZE=65536\nSYMBOL(swapper_pg_dir)=c000000000100000\nKERNELOFFSET=0\n"
    b"SYMBOL(init_uts_ns)=c000000000001000\n"
)


def uts_namespace(machine: bytes) -> bytes:
    fields = (b"Linux", b"host", b"6.1.0", b"#1 SMP", machine, b"(none)")
    return b"".join(field.ljust(65, b"\0") for field in fields).ljust(4096, b"\0")


def ppc64_program(machine: bytes) -> Program:
    """A program with the physical memory of a ppc64 kernel: a struct uts_namespace at 4096."""
    memory = bytes(4096) + uts_namespace(machine)
    prog = Program(Platform(Architecture.PPC64))
    prog.add_memory_segment(
        0, len(memory), lambda address, count, offset, physical: memory[offset : offset + count], physical=True
    )
    prog.set_linux_kernel_custom(PPC64_VMCOREINFO, False)
    ppc64.add_linear_map(prog)
    return prog


def test_the_byte_order_of_a_ppc64_kernel_is_told_by_its_utsname() -> None:
    """QEMU 7.2 gives the core of a ppc64le guest a big-endian ELF header."""
    assert architectures.elf_core_machine(elf_core(21, 2, 2), "vmcore") == "ppc64le"
    ppc64.check_byte_order(ppc64_program(b"ppc64le"), "vmcore")
    with pytest.raises(CollectError, match=r"^vmcore: this architecture is not supported: ppc64;"):
        ppc64.check_byte_order(ppc64_program(b"ppc64"), "vmcore")


def test_page_tables_that_drgn_does_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the hash MMU (POWER8, PowerVM) the first address outside the linear map, here that of the text, is one."""
    path = tmp_path / "vmcore"
    vmcoreinfo = PPC64_VMCOREINFO + b"SYMBOL(_stext)=c00c000000000000\nNUMBER(RADIX_MMU)=0\n"
    pages = {0: bytes(4096), 1: uts_namespace(b"ppc64le")}
    SmallCore(21, vmcoreinfo, b"", [(0, 2)], pages).write_elf(path)
    assert collector.main([str(path)]) == 1
    failure = frame.parse(capsys.readouterr().out.encode())
    assert isinstance(failure, frame.Failure)
    assert failure.status == "bad_core"
    assert failure.error.startswith(f"{path}: drgn cannot translate this kernel's addresses: ")


def test_the_live_kernel_of_another_architecture_is_refused_without_drgn() -> None:
    """There may be no drgn for it. setarch changes utsname.machine for a process, as for a container of 32 bits."""
    code = "import sys; sys.modules['drgn'] = None; from pipeline.collector.__main__ import main; main(['live:'])"
    command = ["setarch", "i686", sys.executable, "-c", code]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True)
    if b"setarch: " in process.stderr:
        pytest.skip("needs personality(2)")
    assert frame.parse(process.stdout) == frame.Failure(
        "bad_core",
        "UnsupportedArchitecture",
        f"live: {os.uname().nodename}: this architecture is not supported: i686; "
        "supported are x86_64, aarch64, ppc64le, s390x",
    )
