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
import time
from pathlib import Path

from tests.lab import boot, initramfs
from tests.lab.kernels import Kernel, LabError
from tests.lab.shapes import Shape

CRASH_MB = 128
"""Memory reserved for the capture kernel, on one node. Debian's cloud kernels capture 256 MB with 96 MB."""
DISK_MB = 2048
"""Size of the disk for the dumps, which is sparse: more than any core of a guest for which CRASH_MB is enough."""
DUMPED = "LAB-DUMPED"
"""Console line of a capture kernel after its dump is on the disk."""
DUMP_TIMEOUT_S = 600
"""Timeout for a panic and its dump. A kdump of 70 MB takes 75 s on two cores."""

DUMP = "makedumpfile -c -d 31 /proc/vmcore vmcore"
"""The dump that most distributions take, but for Debian's -F: zlib, without free, zero, cache and user pages."""
PANIC = "echo c >&4"
"""File 4 is /proc/sysrq-trigger."""


def take_core(
    shape: Shape, kernel: Kernel, folder: Path, dump: str = DUMP, panic: str = PANIC, crash_mb: int = CRASH_MB
) -> None:
    """Boot `shape` as boot.take_core() does, but let the guest panic first, and write its dumps to `folder`/kdump/.

    QEMU dumps the machine while the capture kernel waits in its reserved memory, so both have the same rows.

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
        boot.run(command, work, folder, let_panic)
        fetch(work / "disk", folder / "kdump")


def let_panic(work: Path) -> None:
    """Send an idle guest the line for which it waits before it panics, and wait until its dump is on the disk."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(work / "command"))
        line.sendall(b"panic\n")
    deadline = time.monotonic() + DUMP_TIMEOUT_S
    while DUMPED not in (text := (work / "console").read_text(errors="replace")).split():
        if time.monotonic() > deadline or boot.FAILURE_PREFIX in text:
            raise LabError(f"no kdump; the end of the guest's console: {boot.tail(text)}")
        time.sleep(0.2)


def fetch(disk: Path, folder: Path) -> None:
    """Copy the files of an ext4 image to a new folder, which replaces the old one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tool = shutil.which("debugfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([tool or "debugfs", "-R", f"rdump / {folder}", disk], check=True, stderr=subprocess.DEVNULL)
    (folder / "lost+found").rmdir()
