"""Take a kdump: boot a shape with a capture kernel loaded, let the guest panic, and fetch what makedumpfile wrote.

kexec is this machine's, so the guest has this machine's architecture. makedumpfile is of the kernel's own suite.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.lab import boot, initramfs
from tests.lab.boot import Monitor
from tests.lab.kernels import Kernel, LabError
from tests.lab.shapes import Shape

CRASH_MB = 128
"""Memory reserved for the capture kernel, on one node. Debian's cloud kernels capture 256 MB with 96 MB."""
DISK_MB = 2048
"""Size of the disk for the dumps, which is sparse: more than any core of a guest for which CRASH_MB is enough."""
DUMPED = "LAB-DUMPED"
"""Console line of a capture kernel after its dump is on the disk."""

DUMP = "makedumpfile -c -d 31 /proc/vmcore vmcore"
"""The dump that most distributions take, but for Debian's -F: zlib, without free, zero, cache and user pages."""
PANIC = "echo c >&4"
"""File 4 is /proc/sysrq-trigger, opened by guest/kdump before QEMU's dump, as opening it allocates a dentry."""


def take_core(
    shape: Shape, kernel: Kernel, folder: Path, dump: str = DUMP, panic: str = PANIC, crash_mb: int = CRASH_MB
) -> None:
    """Boot `shape` as boot.take_core() does, then let the guest panic and write its dumps to `folder`/kdump/.

    Between QEMU's core and the panic the guest only reads a line and runs `panic`, so both have the same rows.

    :param dump: shell commands of the capture kernel; their working folder's files are the dumps.
    :param panic: shell commands that make the guest panic.
    """
    # The reserved memory is contiguous and on one node. The memory is divided evenly among the nodes, and KASLR can put
    # the kernel in the middle of the only one.
    machine = dataclasses.replace(shape, memory_mb=shape.memory_mb + max(2, shape.nodes) * crash_mb)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        initramfs.pack_capture(shape, kernel, work / "capture", dump)
        initramfs.pack(shape, kernel, work / "initramfs", kdump=initramfs.Kdump(work / "capture", panic))
        initramfs.mke2fs(work / "disk", f"{DISK_MB}M", "-O", "^has_journal")
        command = boot.qemu(machine, kernel)
        command[command.index("-append") + 1] += f" crashkernel={crash_mb}M"
        command += ["-drive", "file=disk,format=raw,if=virtio,cache=unsafe"]
        boot.run(command, work, folder, end_action=let_panic)
        console = (work / "console").read_text(errors="replace")
        if DUMPED not in console.split():
            raise LabError(f"no kdump; the end of the guest's console: {' | '.join(console.splitlines()[-5:])}")
        fetch(work / "disk", folder / "kdump")


def let_panic(monitor: Monitor, work: Path) -> None:
    """Let the guest run on, and send it the line for which it waits before it panics."""
    monitor.call("cont")
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(work / "command"))
        line.sendall(b"panic\n")


def fetch(disk: Path, folder: Path) -> None:
    """Copy the files of an ext4 image to a new folder, which replaces the old one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tool = shutil.which("debugfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([tool or "debugfs", "-R", f"rdump / {folder}", disk], check=True, stderr=subprocess.DEVNULL)
    (folder / "lost+found").rmdir()
