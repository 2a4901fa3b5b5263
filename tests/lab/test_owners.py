"""list_lrus outside superblocks, in a module's data and in slab objects, are named without debug info."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests.lab import initramfs, kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

SCRIPT = """
if [ -f /xfs.img ]; then mkdir /x; mount -t xfs -o loop,uquota /xfs.img /x; echo 1 > /x/file; fi
grep ' nfs4_xattr_.*_lru\\b' /proc/kallsyms
"""


@pytest.fixture(scope="module", params=["5.10", "6.1"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str, bool]:
    """The list_lrus outside superblocks, the guest's kallsyms of nfsv4's list_lrus, and whether an xfs is mounted."""
    guest_kernel = kernels.debian_kernel(request.param)
    if len(initramfs.load_order(guest_kernel.modules, ("nfsv4", "xfs"))) < 2:
        pytest.skip("needs nfsv4 and xfs as modules")
    folder = tmp_path_factory.mktemp("owners")
    images = make_xfs(folder / "xfs.img") if request.param == "5.10" else []
    core, symbols = scripted.take_core(
        SHAPES["deb510-n1"], guest_kernel, folder, SCRIPT, modules=("nfsv4", "xfs"), files=images
    )
    table = snapshot.take(kernel.open_kernel(str(core))).list_lrus
    list_lrus = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [lru for lru in list_lrus if lru["owner"] != "superblock"], symbols, bool(images)


def make_xfs(image: Path) -> list[Path]:
    mkfs = shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if mkfs is None:
        return []
    image.touch()
    os.truncate(image, 20 << 20)
    # Features that 5.10 can mount; --unsupported allows a size below mkfs.xfs's minimum.
    options = ["--unsupported", "-m", "bigtime=0,inobtcount=0,reflink=0"]
    subprocess.run([mkfs, "-q", *options, image], check=True, capture_output=True)
    return [image]


def test_those_of_a_module_have_the_names_that_the_guest_sees(guest: tuple[list[Any], str, bool]) -> None:
    list_lrus, kallsyms, _ = guest
    addresses = {fields[2]: int(fields[0], 16) for fields in map(str.split, kallsyms.splitlines())}
    assert set(addresses) == {"nfs4_xattr_cache_lru", "nfs4_xattr_entry_lru", "nfs4_xattr_large_entry_lru"}
    lru_by_name = {lru["name"]: lru for lru in list_lrus if lru["owner"] == "symbol"}
    assert set(lru_by_name) == {"shadow_nodes", *addresses}
    assert {name: lru_by_name[name]["address"] for name in addresses} == addresses
    assert all(lru["memcg_aware"] for lru in lru_by_name.values())


def test_those_of_xfs_are_parts_of_slab_objects(guest: tuple[list[Any], str, bool]) -> None:
    """xfs_buftarg.bt_lru and, with quota, xfs_quotainfo.qi_lru: from kmem_zalloc(), not memcg-aware."""
    list_lrus, _, has_xfs = guest
    if not has_xfs:
        pytest.skip("needs Linux 5.15 or older")
    slab_lrus = [lru for lru in list_lrus if lru["owner"] == "slab"]
    assert len(slab_lrus) == 2
    for lru in slab_lrus:
        assert lru["name"].startswith("kmalloc-")
        assert not lru["memcg_aware"]
        assert lru["items"] > 0
    assert {lru["owner"] for lru in list_lrus} == {"slab", "symbol"}
