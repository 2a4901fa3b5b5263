"""Dumps that drgn does not read are named with the command that makes a core of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.collector import foreign
from pipeline.collector.access import kernel
from pipeline.collector.status import CollectError
from tests.collector.conftest import CORES

# The first bytes of each form as their sources declare them, independent of the collector's own table.
FILES = {
    "guest.save": (b"LibvirtQemudSave\x02\0\0\0", "libvirt", "virsh dump --memory-only"),
    "partial.save": (b"LibvirtQemudPart\x02\0\0\0", "libvirt", "virsh dump --memory-only"),
    "state": (b"QEVM\0\0\0\3", "QEMU", "dump-guest-memory"),
    "a.vmss": ((0xBED2BED2).to_bytes(4, "little"), "VMware", "vmss2core -M"),
    "a.vmsn": ((0xBED3BED3).to_bytes(4, "little"), "VMware", "vmss2core -M"),
    "b.vmem": (b"\0", "VMware", "vmss2core -M"),
    "A.VMRS": ((0x01282014).to_bytes(4, "little"), "Hyper-V", "ssh"),
    "a.vsv": (b"\0", "Hyper-V", "ssh"),
    "a.sav": (b"\177VirtualBox SavedState V2.0\n", "VirtualBox", "VBoxManage debugvm"),
    "xen": (b"Xen saved domain, xl format\n \0 \r", "Xen", "ssh"),
    "xen-libvirt": (b"libvirt-xml\n \0 \r", "Xen", "ssh"),
    "a.lime": ((0x4C694D45).to_bytes(4, "little"), "LiME", "kdump"),
    "a.avml": ((0x4C4D5641).to_bytes(4, "little"), "AVML", "kdump"),
    "MEMORY.DMP": (b"PAGEDU64", "Windows", "Linux"),
    "vmstate": ((0x0710_1984_8664_0000).to_bytes(8, "little"), "Firecracker", "ssh"),
    "pmemsave": (b"\x53\xff\x00\xf0" * 4, "raw image of memory", "dump-guest-memory"),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_bad_core_with_its_name_and_a_remedy(tmp_path: Path, name: str) -> None:
    head, maker, remedy = FILES[name]
    path = tmp_path / name
    path.write_bytes(head.ljust(8192, b"\0"))
    with pytest.raises(CollectError) as error_info:
        kernel.open_kernel(str(path))
    assert (error_info.value.status, error_info.value.error_type) == ("bad_core", "Foreign")
    message = str(error_info.value)
    assert message.startswith(f"{path}: ")
    assert maker in message
    assert remedy in message
    assert "ELF" not in message


def test_a_core_by_any_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "core.vmem"
    path.write_bytes(CORES[0].path.read_bytes())
    assert kernel.open_kernel(str(path)).types_source == "btf"


@pytest.mark.parametrize("head", [b"", b"QEV", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01", b"KDUMP   ", b"makedumpfile\0"])
def test_other_files_are_none(head: bytes) -> None:
    assert foreign.recognize(head, "/var/crash/vmcore") is None
