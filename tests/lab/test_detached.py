"""Filesystems that users unmounted, or never mounted, and that something still uses, as the guest made them.

The guest has the identity of its boot and machine too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from pipeline.collector import snapshot
from pipeline.collector.access import kernel
from tests.lab import kernels, scripted
from tests.lab.shapes import SHAPES

pytestmark = pytest.mark.lab

# Each tmpfs is named for what holds it. x86_64's system calls: open_tree 428, fsopen 430, fsconfig 431, fsmount 432.
SCRIPT = """
hold() { (exec > /dev/null; "$@"; touch /m/held_$1; exec sleep 1000000) & held $1; }
held() { until [ -e /m/held_$1 ]; do sleep 0.1; done; }
make() { mkdir -p /m/$1; mount -t tmpfs $1 /m/$1; echo $1 $(stat -c %d /m/$1) $2; }
in_file() { exec 7> /m/open_file/file; }
in_directory() { cd /m/working_directory; }

cat /proc/sys/kernel/random/boot_id
make open_file detached; hold in_file; umount -l /m/open_file
make working_directory detached; hold in_directory; umount -l /m/working_directory
make loop_device detached
dd if=/dev/zero of=/m/loop_device/image bs=1M count=1 2> /dev/null
losetup /dev/loop0 /m/loop_device/image; umount -l /m/loop_device
make overlay_layer detached
mkdir /m/overlay; mount -t overlay -o lowerdir=/m/overlay_layer:/lab overlay /m/overlay; umount -l /m/overlay_layer
make open_tree detached
perl -e '$path = "/m/open_tree"; syscall(428, -100, $path, 1) >= 0 or die; close STDOUT;
    open(R, ">", "/m/held_tree"); sleep 1000000' & held tree
umount /m/open_tree
perl -e '$type = "tmpfs"; $fs = syscall(430, $type, 0); syscall(431, $fs, 6, 0, 0, 0) >= 0 or die;
    $mount = syscall(432, $fs, 0, 0); open(F, "<&=", $mount) or die; print "fsmount ", (stat F)[0], " detached\\n";
    close STDOUT; open(R, ">", "/m/held_mount"); sleep 1000000' & held mount
make bound_file mounted
echo > /m/bound_file/file; echo > /m/target; mount --bind /m/bound_file/file /m/target; umount -l /m/bound_file
make other_namespace mounted
unshare -m sh -c 'touch /m/held_namespace; exec sleep 1000000' > /dev/null & held namespace
umount /m/other_namespace
make unmounted gone; umount /m/unmounted
"""


class Guest(NamedTuple):
    """What the guest said: its boot id, and each filesystem's name, device and state; and the rows of its core."""

    boot_id: str
    filesystems: list[tuple[str, int, str]]
    tables: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["5.10", "7"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    shape = SHAPES["deb510-n1" if request.param == "5.10" else "deb7-n2"]
    folder = tmp_path_factory.mktemp("detached")
    core, printed = scripted.take_core(shape, kernels.debian_kernel(request.param), folder, SCRIPT, programs=["perl"])
    boot_id, *lines = printed.splitlines()
    filesystems = [(name, int(device), state) for name, device, state in map(str.split, lines)]
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in snapshot.take(kernel.open_kernel(str(core))).tables
    }
    return Guest(boot_id, filesystems, tables)


def state(sb: dict[str, Any] | None) -> str:
    if sb is None:
        return "gone"
    return "detached" if sb["detached"] else "internal" if sb["kernel_internal"] else "mounted" if sb["mounts"] else ""


def test_each_filesystem_is_in_the_state_that_the_guest_brought_it_into(guest: Guest) -> None:
    sb_by_device = {sb["s_dev"]: sb for sb in guest.tables["superblocks"]}
    states = {name: state(sb_by_device.get(device)) for name, device, _ in guest.filesystems}
    assert states == {name: state for name, _, state in guest.filesystems}
    assert len(states) == 9


def test_no_other_filesystem_is_detached_and_each_has_one_state(guest: Guest) -> None:
    detached_devices = {device for _, device, state in guest.filesystems if state == "detached"}
    for sb in guest.tables["superblocks"]:
        assert bool(sb["mounts"]) + sb["detached"] + sb["kernel_internal"] == 1, sb
        assert sb["detached"] == (sb["s_dev"] in detached_devices), sb
        assert not sb["detached"] or sb["mountpoint"] is None


def test_the_boot_has_the_id_that_the_guest_read(guest: Guest) -> None:
    assert guest.tables["targets"][0]["boot_id"] == guest.boot_id
    assert guest.tables["targets"][0]["machine_id"] is None
