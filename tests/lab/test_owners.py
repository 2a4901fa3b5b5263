"""list_lrus that belong to no superblock: in a module's data and in slab objects, named without debug info."""

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
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str, bool]:
    """The list_lrus that are no superblock's, the guest's kallsyms of nfsv4's, and whether it has mounted an xfs."""
    built = kernels.of(request.param)
    if len(initramfs.load_order(built.modules, ("nfsv4", "xfs"))) < 2:
        pytest.skip(f"{built.release} has nfsv4 or xfs not as modules")
    folder = tmp_path_factory.mktemp("owners")
    images = make_xfs(folder / "xfs.img") if request.param == "5.10" else []
    core, symbols = scripted.take_core(
        SHAPES["deb510-n1"], built, folder, SCRIPT, modules=("nfsv4", "xfs"), files=images
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
    # What a kernel of 5.10 can mount, and smaller than mkfs likes.
    options = ["--unsupported", "-m", "bigtime=0,inobtcount=0,reflink=0"]
    subprocess.run([mkfs, "-q", *options, image], check=True, capture_output=True)
    return [image]


def test_those_of_a_module_have_the_names_that_the_guest_sees(booted: tuple[list[Any], str, bool]) -> None:
    list_lrus, kallsyms, _ = booted
    seen = {fields[2]: int(fields[0], 16) for fields in map(str.split, kallsyms.splitlines())}
    assert set(seen) == {"nfs4_xattr_cache_lru", "nfs4_xattr_entry_lru", "nfs4_xattr_large_entry_lru"}
    found = {lru["name"]: lru for lru in list_lrus if lru["owner"] == "symbol"}
    assert set(found) == {"shadow_nodes", *seen}
    assert {name: found[name]["address"] for name in seen} == seen
    assert all(lru["memcg_aware"] for lru in found.values())


def test_those_of_xfs_are_parts_of_slab_objects(booted: tuple[list[Any], str, bool]) -> None:
    """xfs_buftarg.bt_lru and, with quota, xfs_quotainfo.qi_lru: kmem_zalloc(), not memcg-aware."""
    list_lrus, _, xfs = booted
    if not xfs:
        pytest.skip("only up to v5.15 lists that are not memcg-aware are on the kernel's own")
    found = [lru for lru in list_lrus if lru["owner"] == "slab"]
    assert len(found) == 2
    for lru in found:
        assert lru["name"].startswith("kmalloc-")
        assert not lru["memcg_aware"]
        assert lru["items"] > 0
    assert {lru["owner"] for lru in list_lrus} == {"slab", "symbol"}
