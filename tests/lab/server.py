"""Guests with a complete Debian under systemd or a container runtime: the list_lrus of real workloads.

The root filesystem is an ext4 on a virtio disk. debootstrap makes it from the mirror in this machine's apt sources.
"""

from __future__ import annotations

import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests import reference_charges
from tests.lab import boot, initramfs, kernels
from tests.lab.kernels import SUITES, Kernel, debian_uri
from tests.lab.reduce import FullCore
from tests.lab.shapes import Shape
from tests.reference import dumps

DISK_MB = 1280


class Disk(NamedTuple):
    """Contents of a disk: what debootstrap installs, and systemd starts."""

    suite: str
    packages: tuple[str, ...]


_BASE = ("kmod", "iproute2", "procps", "busybox-static")
_SYSTEMD = ("systemd-sysv", "libpam-systemd", "dbus", "openssh-server")
DISKS = {
    "bookworm": Disk(
        "bookworm", (*_BASE, *_SYSTEMD, "cron", "nginx-light", "redis-server", "python3", "runc", "crun", "sudo")
    ),
    "bullseye": Disk("bullseye", ("iproute2", "openssh-server", "python3", "sudo")),
    "services": Disk(
        "trixie",
        (
            *_BASE, *_SYSTEMD, "systemd-oomd", "systemd-resolved", "systemd-userdbd", "rsyslog", "openssh-client",
            "postgresql", "apache2", "php-fpm",
        ),
    ),
    "lxc": Disk("trixie", (*_BASE, "lxc")),
    "logins": Disk("trixie", ("openssh-server", "python3", "sudo", "sudo-rs", "opendoas")),
}  # fmt: skip


@dataclass(frozen=True)
class Server(Shape):
    """A Debian guest; it does not use the counts of Shape."""

    workload: str = "systemd"
    """A file of guest/ that the disk's init runs, or that is the init."""
    disk: str = "bookworm"
    """A key of DISKS."""
    pods: int = 0
    """Pods of two or three containers each."""
    runtimes: str = "runc"
    """OCI runtimes, used in turn for the pods."""
    containers: int = 0
    """LXC containers."""


def _servers() -> dict[str, Server]:
    servers = []
    for series in SUITES:
        debian: dict[str, Any] = {"series": series, "nodes": 2, "memcgs": 0, "kept": 0}
        short = series.replace(".", "")
        servers.append(Server(f"systemd-{short}", memory_mb=640, **debian))
        containers: dict[str, Any] = {**debian, "memory_mb": 768, "workload": "containers", "pods": 9}
        servers.append(Server(f"runc-{short}", **containers))
        servers.append(Server(f"crun-{short}", **containers, runtimes="crun crun runc"))
        # The rule of pipeline/collector/walk/transient_objects.py was chosen without these two workloads.
        servers.append(Server(f"services-{short}", workload="services", disk="services", memory_mb=896, **debian))
        servers.append(Server(f"lxc-{short}", workload="lxc", disk="lxc", memory_mb=640, containers=12, **debian))
    return {server.name: server for server in servers}


SERVERS = _servers()


def take_core(server: Server, kernel: Kernel, folder: Path, cache: Path) -> None:
    """Boot `server` and write its core and report to `folder`, as boot.take_core() does for a shape."""
    disk = image(server.disk, cache)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        initramfs.pack_server(server, kernel, work / "initramfs")
        # snapshot=on: QEMU discards what the guest writes to the disk.
        drive = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
        boot.run([*boot.qemu(server, kernel), *drive], work, folder)


def examine(server: Server, kernel: Kernel, folder: Path, cache: Path) -> None:
    """Take the core, and write charges.json beside it: the memcgs with entries, and the memcgs with live objects."""
    assert kernel.vmlinux
    take_core(server, kernel, folder, cache)
    prog = FullCore(folder / "vmcore").program()
    prog.load_debug_info([kernel.vmlinux])
    (folder / "charges.json").write_text(dumps(reference_charges.read(prog)))


def image(name: str, cache: Path) -> Path:
    """A disk of DISKS; it is built if it does not exist, which takes about a minute and 310 to 700 MB."""
    disk = cache / f"debian-{name}-{zlib.crc32(' '.join(DISKS[name].packages).encode()):08x}.ext4"
    with kernels.lock(cache, name):
        if not disk.exists():
            suite, packages = DISKS[name]
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                root, new = Path(scratch) / "root", Path(scratch) / "disk"
                subprocess.run(
                    ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, root, debian_uri()],
                    stdout=subprocess.DEVNULL, check=True,
                )  # fmt: skip
                # Without udev the device never appears, and the boot would wait for it.
                (root / "etc/systemd/system/serial-getty@ttyS0.service").symlink_to("/dev/null")
                initramfs.mke2fs(new, f"{DISK_MB}M", "-d", root)
                new.rename(disk)
    return disk
