"""Guests with a whole Debian below a systemd or a container runtime: real userlands, to see what real work leaves.

The root filesystem is an ext4 on a virtio disk, made by debootstrap from the mirror of the machine's own apt sources.
"""

from __future__ import annotations

import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import reference_charges
from tests.lab import boot, initramfs
from tests.lab.kernels import SUITES, Kernel, debian_uri
from tests.lab.reduce import FullCore
from tests.lab.shapes import Shape
from tests.reference import dumps

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "libpam-systemd", "dbus", "cron", "openssh-server", "nginx-light", "redis-server", "python3",
    "runc", "crun", "kmod", "iproute2", "procps", "busybox-static", "sudo",
)  # fmt: skip
DISK_MB = 1024
SERVICE = """[Service]
ExecStart=/lab/systemd
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Server(Shape):
    """A Debian guest; the counts of Shape are of no use to it."""

    workload: str = "systemd"
    """A file of guest/: what the disk's init is or runs."""
    pods: int = 0
    """Pods of two or three containers each."""
    runtimes: str = "runc"
    """OCI runtimes, for one pod after the other."""


def _servers() -> dict[str, Server]:
    made = []
    for series in SUITES:
        debian: dict[str, Any] = {"series": series, "nodes": 2, "memcgs": 0, "kept": 0}
        short = series.replace(".", "")
        made.append(Server(f"systemd-{short}", memory_mb=640, **debian))
        containers: dict[str, Any] = {**debian, "memory_mb": 768, "workload": "containers", "pods": 9}
        made.append(Server(f"runc-{short}", **containers))
        made.append(Server(f"crun-{short}", **containers, runtimes="crun crun runc"))
    return {server.name: server for server in made}


SERVERS = _servers()


def take_core(server: Server, kernel: Kernel, to: Path, cache: Path) -> None:
    """Boot `server` and leave its core and report in `to`, as boot.take_core does for a shape."""
    disk = image(cache)
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


def image(cache: Path) -> Path:
    """The disk, made where it is not there yet: about a minute, 340 MB."""
    disk = cache / f"debian-{SUITE}-{zlib.crc32(' '.join(PACKAGES).encode()):08x}.ext4"
    if not disk.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            root, new = Path(scratch) / "root", Path(scratch) / "disk"
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, debian_uri()],
                stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            units = root / "etc/systemd/system"
            (units / "lab.service").write_text(SERVICE)
            (units / "multi-user.target.wants/lab.service").symlink_to("../lab.service")
            # Without udev its device never comes, and the boot would wait for that.
            (units / "serial-getty@ttyS0.service").symlink_to("/dev/null")
            initramfs.mke2fs(new, f"{DISK_MB}M", "-d", root)
            new.rename(disk)
    return disk
