"""Guests with a whole Debian below a systemd or a container runtime: real userlands, to see what real work leaves.

The root filesystem is an ext4 on a virtio disk, made by debootstrap from the mirror of the machine's own apt sources.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab import boot, initramfs
from tests.lab.kernels import Kernel, debian_uri
from tests.lab.shapes import Shape

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "libpam-systemd", "dbus", "cron", "openssh-server", "nginx-light", "redis-server", "python3",
    "runc", "crun", "kmod", "iproute2", "procps", "busybox-static",
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


def _servers() -> dict[str, Server]:
    found = {}
    for series in ("5.10", "6.1", "6.12", "7"):
        short = series.replace(".", "")
        base = {"series": series, "nodes": 2, "memcgs": 0, "kept": 0}
        found[f"systemd-{short}"] = Server(f"systemd-{short}", memory_mb=640, **base)
        found[f"containers-{short}"] = Server(
            f"containers-{short}", memory_mb=768, workload="containers", pods=9, **base
        )
    return found


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


def image(cache: Path) -> Path:
    """The disk, made where it is not there yet: about a minute, 340 MB."""
    name = f"debian-{SUITE}"
    disk = cache / f"{name}.ext4"
    if disk.exists():
        return disk
    root = cache / name
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, debian_uri()],
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    unit = "etc/systemd/system/lab.service"
    (root / unit).write_text(SERVICE)
    wanted = root / "etc/systemd/system/multi-user.target.wants/lab.service"
    wanted.symlink_to(f"/{unit}")
    new = cache / f"{name}.new"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, new, f"{DISK_MB}M"], check=True)
    new.rename(disk)
    subprocess.run(["rm", "-rf", root], check=True)
    return disk
