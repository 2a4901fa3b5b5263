"""Packs the guest: busybox, the modules that the kernel needs, a small ext4 image, the shape, and init."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lab import userland
from tests.lab.kernels import BUSYBOX, Kernel
from tests.lab.shapes import Shape

GUEST = Path(__file__).parent / "guest"
MODULES = ("qemu_fw_cfg", "loop", "overlay")
"""What init uses and some kernel builds as a module: VMCOREINFO for the dump, ext4 on loop, overlay."""

DISK = (*MODULES, "virtio_pci", "virtio_blk")
NETWORKED = (*DISK, "virtio_net")


def pack(shape: Shape, kernel: Kernel, to: Path, live: bool = False, churn: bool = False) -> None:
    """Write the initramfs (cpio, uncompressed) of `shape` for `kernel`.

    :param live: with the collector and guest/live. :param churn: with guest/churn, and guest/churn-live for live.
    """
    with busybox(shape, kernel, to, MODULES) as root:
        install(root / "init", "init")
        if shape.ext4:
            # Small in the initramfs, and room for some hundred files.
            mke2fs(root / "lab/ext4.img", "2M", "-O", "^has_journal", "-N", "1024")
        if live:
            userland.copy(root)
            install(root / "lab/live", "churn-live" if churn else "live")
        if churn:
            install(root / "lab/churn", "churn")


def pack_server(server: Shape, kernel: Kernel, to: Path) -> None:
    """Write the initramfs that hands over to the disk of a Debian guest, with what that is to do in /lab."""
    with busybox(server, kernel, to, DISK) as root:
        install(root / "init", "server")
        for name in ("systemd", "services", "containers", "lxc", "workload.py"):
            install(root / f"lab/{name}", name)


def install(to: Path, name: str) -> None:
    """Copy a file of guest/, executable."""
    shutil.copy(GUEST / name, to)
    to.chmod(0o755)


@contextlib.contextmanager
def busybox(shape: Shape, kernel: Kernel, to: Path, wanted: tuple[str, ...]) -> Iterator[Path]:
    """A folder with busybox, the wanted modules and the shape, packed as the initramfs `to` in the end."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for folder in ("bin", "dev", "proc", "sys", "run", "lab/modules"):
            (root / folder).mkdir(parents=True)
        shutil.copy(kernel.busybox, root / "bin/busybox")
        for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        for order, module in enumerate(load_order(kernel.modules, wanted)):
            (root / f"lab/modules/{order:02}-{module.name.partition('.')[0]}.ko").write_bytes(content(module))
        (root / "lab/shape").write_text(shape.assignments())
        install(root / "lab/report", "report")
        yield root
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        with to.open("wb") as file:
            subprocess.run(
                ["cpio", "--quiet", "-o", "-H", "newc", "--owner=0:0"],
                input="\n".join(names), text=True, cwd=root, stdout=file, check=True,
            )  # fmt: skip


def load_order(modules: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Files of the wanted modules, each after those it depends on; a module that is built in has no file."""
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in order:
            return
        for needed in dependencies(content(path)):
            add(needed)
        order.append(path)

    for name in wanted:
        add(name)
    return order


def content(module: Path) -> bytes:
    """The ELF object of a module file, decompressed (busybox insmod loads plain ones only)."""
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def dependencies(module: bytes) -> list[str]:
    """Names in the `depends=` field of a module's .modinfo section."""
    field = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in field[1].decode().split(",") if name] if field else []


def mke2fs(image: Path, size: str, *options: str | Path) -> None:
    """Make an ext4 image; a user's PATH may leave out the folder that mke2fs is in."""
    image.touch()
    tool = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([tool or "mke2fs", "-q", "-t", "ext4", *options, image, size], check=True)
