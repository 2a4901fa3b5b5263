"""Pack a guest's initramfs: busybox, the modules that the kernel needs, a small ext4 image, the shape, and init."""

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
from typing import NamedTuple

from tests.lab import kernels, userland
from tests.lab.kernels import BUSYBOX, Kernel
from tests.lab.shapes import Shape

GUEST = Path(__file__).parent / "guest"
MODULES = ("qemu_fw_cfg", "virtio_console", "loop", "crc32c_generic", "ext4", "overlay")
"""Drivers that init needs and that some kernels have as modules: VMCOREINFO for the dump, the report's line on s390x,
ext4 on loop, overlay."""

DISK_MODULES = (*MODULES, "virtio_pci", "virtio_blk")
CAPTURE_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
NETWORK_MODULES = (*DISK_MODULES, "virtio_net")


class Kdump(NamedTuple):
    """What makes a guest end with a kdump."""

    capture: Path
    """Initramfs of the capture kernel."""
    panic: str
    """Shell commands that make the guest panic."""


def pack(
    shape: Shape,
    kernel: Kernel,
    archive: Path,
    live: bool = False,
    churn: bool = False,
    kdump: Kdump | None = None,
) -> None:
    """Write the initramfs (cpio, uncompressed) of `shape` for `kernel`.

    :param live: add the collector and guest/live.
    :param churn: add guest/churn; with `live`, guest/churn-live replaces guest/live.
    :param kdump: add kexec and guest/kdump; the capture kernel is `kernel` too.
    """
    with busybox(shape, kernel, archive, MODULES) as root:
        install(root / "init", "init")
        if shape.ext4:
            # Small in the initramfs, but large enough for some hundred files.
            mke2fs(root / "lab/ext4.img", "2M", "-O", "^has_journal", "-N", "1024")
        if live:
            userland.copy(root)
            install(root / "lab/live", "churn-live" if churn else "live")
        if churn:
            install(root / "lab/churn", "churn")
        if shape.growing:
            install(root / "lab/grow", "grow")
        if kdump:
            userland.copy_program(root, "kexec")
            (root / "lab/kdump").mkdir()
            install(root / "lab/kdump/load", "kdump")
            shutil.copy(kernel.vmlinuz, root / "lab/kdump/vmlinuz")
            shutil.copy(kdump.capture, root / "lab/kdump/initramfs")
            (root / "lab/panic").write_text(f"{kdump.panic}\n")


def pack_capture(shape: Shape, kernel: Kernel, archive: Path, dump: str) -> None:
    """Write the initramfs of the capture kernel, which runs the shell commands `dump` on /proc/vmcore."""
    with busybox(shape, kernel, archive, CAPTURE_MODULES) as root:
        install(root / "init", "capture")
        makedumpfile = kernels.makedumpfile(shape.series, shape.arch)
        shutil.copy(makedumpfile / "usr/bin/makedumpfile", root / "bin")
        (root / "lib").mkdir()
        (root / "lib64").symlink_to("lib")
        for library in filter(Path.is_file, makedumpfile.rglob("*.so.*")):
            shutil.copy(library, root / "lib")
        (root / "lab/dump").write_text(f"{dump}\n")


def pack_server(server: Shape, kernel: Kernel, archive: Path) -> None:
    """Write the initramfs that switches to the disk of a Debian guest; /lab has the guest's work."""
    with busybox(server, kernel, archive, DISK_MODULES) as root:
        install(root / "init", "server")
        for name in ("systemd", "services", "containers", "lxc", "workload.py"):
            install(root / f"lab/{name}", name)


def install(path: Path, name: str) -> None:
    """Copy a file of guest/ to a path, and make it executable."""
    shutil.copy(GUEST / name, path)
    path.chmod(0o755)


@contextlib.contextmanager
def busybox(shape: Shape, kernel: Kernel, archive: Path, module_names: tuple[str, ...]) -> Iterator[Path]:
    """Yield a folder with busybox, the modules and the shape; at the end, pack it as the initramfs `archive`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for folder in ("bin", "dev", "proc", "sys", "run", "lab/modules"):
            (root / folder).mkdir(parents=True)
        shutil.copy(kernel.busybox, root / "bin/busybox")
        for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        for order, module in enumerate(load_order(kernel.modules, module_names)):
            (root / f"lab/modules/{order:02}-{module.name.partition('.')[0]}.ko").write_bytes(content(module))
        (root / "lab/shape").write_text(shape.assignments())
        install(root / "lab/report", "report")
        yield root
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        with archive.open("wb") as file:
            subprocess.run(
                ["cpio", "--quiet", "-o", "-H", "newc", "--owner=0:0"],
                input="\n".join(names), text=True, cwd=root, stdout=file, check=True,
            )  # fmt: skip


def load_order(modules: Path, module_names: tuple[str, ...]) -> list[Path]:
    """Files of the named modules, each after its dependencies; a built-in module has no file."""
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in order:
            return
        for dependency in dependencies(content(path)):
            add(dependency)
        order.append(path)

    for name in module_names:
        add(name)
    return order


def content(module: Path) -> bytes:
    """The ELF object of a module file, decompressed: insmod of busybox loads plain files only."""
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def dependencies(module: bytes) -> list[str]:
    """Names in the `depends=` field of a module's .modinfo section."""
    field = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in field[1].decode().split(",") if name] if field else []


def mke2fs(image: Path, size: str, *options: str | Path) -> None:
    """Make an ext4 image. Its tool may be in /sbin, which an ordinary user's PATH can lack."""
    image.touch()
    tool = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([tool or "mke2fs", "-q", "-t", "ext4", *options, image, size], check=True)
