"""Guests with a whole Debian below a systemd or a container runtime: real userlands, to see what real work leaves.

The root filesystem is an ext4 on a virtio disk, made by debootstrap from the mirror of the machine's own apt sources.
"""

from __future__ import annotations

import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests import reference_charges
from tests.lab import boot, initramfs
from tests.lab.kernels import SUITES, Kernel, debian_uri
from tests.lab.reduce import FullCore
from tests.lab.shapes import Shape
from tests.reference import dumps

DISK_MB = 1280


class Disk(NamedTuple):
    """What debootstrap installs; systemd starts all of it."""

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
}  # fmt: skip


@dataclass(frozen=True)
class Server(Shape):
    """A Debian guest; the counts of Shape are of no use to it."""

    workload: str = "systemd"
    """A file of guest/: what the disk's init is or runs."""
    disk: str = "bookworm"
    """A key of DISKS."""
    pods: int = 0
    """Pods of two or three containers each."""
    runtimes: str = "runc"
    """OCI runtimes, for one pod after the other."""
    containers: int = 0
    """Containers of LXC."""


def _servers() -> dict[str, Server]:
    made = []
    for series in SUITES:
        debian: dict[str, Any] = {"series": series, "nodes": 2, "memcgs": 0, "kept": 0}
        short = series.replace(".", "")
        made.append(Server(f"systemd-{short}", memory_mb=640, **debian))
        containers: dict[str, Any] = {**debian, "memory_mb": 768, "workload": "containers", "pods": 9}
        made.append(Server(f"runc-{short}", **containers))
        made.append(Server(f"crun-{short}", **containers, runtimes="crun crun runc"))
        # The rule of what outlives its objects (pipeline/collector/model/estimate.py) was not chosen on these two.
        made.append(Server(f"services-{short}", workload="services", disk="services", memory_mb=896, **debian))
        made.append(Server(f"lxc-{short}", workload="lxc", disk="lxc", memory_mb=640, containers=12, **debian))
    return {server.name: server for server in made}


SERVERS = _servers()


def take_core(server: Server, kernel: Kernel, to: Path, cache: Path) -> None:
    """Boot `server` and leave its core and report in `to`, as boot.take_core does for a shape."""
    disk = image(server.disk, cache)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        initramfs.pack_server(server, kernel, work / "initramfs")
        # What the guest writes is gone with it.
        drive = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
        boot.run([*boot.qemu(server, kernel), *drive], work, to)


def examine(server: Server, kernel: Kernel, to: Path, cache: Path) -> None:
    """take_core(), and beside the core charges.json: which memcgs have entries, and which own live objects."""
    assert kernel.vmlinux
    take_core(server, kernel, to, cache)
    prog = FullCore(to / "vmcore").program()
    prog.load_debug_info([kernel.vmlinux])
    (to / "charges.json").write_text(dumps(reference_charges.read(prog)))


def image(name: str, cache: Path) -> Path:
    """A disk of DISKS, made where it is not there yet: about a minute, 310 to 700 MB."""
    disk = cache / f"debian-{name}-{zlib.crc32(' '.join(DISKS[name].packages).encode()):08x}.ext4"
    if not disk.exists():
        suite, packages = DISKS[name]
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            root, new = Path(scratch) / "root", Path(scratch) / "disk"
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, root, debian_uri()],
                stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            # Without udev its device never comes, and the boot would wait for that.
            (root / "etc/systemd/system/serial-getty@ttyS0.service").symlink_to("/dev/null")
            initramfs.mke2fs(new, f"{DISK_MB}M", "-d", root)
            new.rename(disk)
    return disk
