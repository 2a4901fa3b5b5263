"""Boot a kernel whose guest runs one script: for tests of a kernel command line, a module or a filesystem."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab import boot, initramfs, userland
from tests.lab.kernels import Kernel
from tests.lab.shapes import Shape

INIT = """#!/bin/sh
trap 'echo "{failed}: init ended"; poweroff -f' EXIT
set -e
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /lab/modules/*; do insmod "$module"; done
. /lab/report
mkdir /run/truth
cd /run/truth
({script}) > printed
send
idle
"""


def take_core(
    shape: Shape,
    kernel: Kernel,
    folder: Path,
    script: str,
    command_line: str = "",
    modules: Iterable[str] = (),
    files: Iterable[Path] = (),
    programs: Iterable[str] = (),
    collector: bool = False,
) -> tuple[Path, str]:
    """Boot a kernel on a shape's machine and run a script there; return the full core and the script's output.

    :param modules: modules to load before the script. :param files: files to copy to the guest's /.
    :param programs: programs of this machine to put into the guest.
    :param collector: put the collector into the guest.
    """
    if collector:
        shape = dataclasses.replace(shape, memory_mb=shape.memory_mb + userland.MEMORY_MB)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        with initramfs.busybox(shape, kernel, work / "initramfs", (*initramfs.MODULES, *modules)) as root:
            for file in files:
                shutil.copy(file, root)
            for program in programs:
                userland.copy_program(root, program)
            if collector:
                userland.copy(root)
            init = root / "init"
            init.write_text(INIT.format(script=script, failed=boot.FAILURE_PREFIX))
            init.chmod(0o755)
        command = boot.qemu(shape, kernel)
        command[command.index("-append") + 1] += f" {command_line}"
        boot.run(command, work, folder)
    return folder / "vmcore", (folder / "truth/printed").read_text()
