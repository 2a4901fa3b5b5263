"""Boots a kernel whose guest runs one script, for what no shape is for: a command line, a module, a filesystem."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab import boot, initramfs
from tests.lab.kernels import Kernel
from tests.lab.shapes import Shape

TIMEOUT_S = 180
"""The slowest, 7.x with modules, takes 20 s on two cores."""
_INIT = """#!/bin/sh
trap 'echo "{failed}: init ended"; poweroff -f' EXIT
set -e
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*; do insmod "$module"; done
stty -F /dev/ttyS1 raw
({script}) > /dev/ttyS1
sleep 1
trap - EXIT
echo "{idle}0"
exec sleep 1000000
"""


def take_core(
    shape: Shape,
    kernel: Kernel,
    to: Path,
    script: str = ":",
    command_line: str = "",
    modules: Iterable[str] = (),
    files: Iterable[Path] = (),
) -> tuple[Path, str]:
    """Boot a kernel on a shape's machine and run a script there; return the full core and what the script printed.

    :param modules: loaded before the script. :param files: laid in the guest's /.
    """
    core = to / "vmcore"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        root = work / "root"
        for folder in ("bin", "dev", "proc", "sys", "modules"):
            (root / folder).mkdir(parents=True)
        shutil.copy(initramfs.BUSYBOX, root / "bin/busybox")
        for applet in subprocess.check_output([initramfs.BUSYBOX, "--list"], text=True).split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        wanted = (*initramfs.MODULES, *modules)
        for order, module in enumerate(initramfs.load_order(kernel.modules, wanted)):
            name = f"{order:02}-{module.name.partition('.')[0]}.ko"
            (root / "modules" / name).write_bytes(initramfs.content(module))
        for file in files:
            shutil.copy(file, root)
        init = root / "init"
        init.write_text(_INIT.format(script=script, failed=boot.FAILED, idle=boot.IDLE))
        init.chmod(0o755)
        names = "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
        with (work / "initramfs").open("wb") as file:
            pack = ["cpio", "--quiet", "-o", "-H", "newc", "--owner=0:0"]
            subprocess.run(pack, input=names, text=True, cwd=root, stdout=file, check=True)
        command = boot.qemu(shape, kernel, work)
        at = command.index("-append") + 1
        command[at] = f"{command[at]} {command_line}"
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as machine:
            try:
                boot.wait_idle(machine, work / "console", time.monotonic() + TIMEOUT_S)
                with boot.Monitor(work / "qmp") as monitor:
                    monitor.call("stop")
                    monitor.call("dump-guest-memory", paging=False, protocol=f"file:{core.resolve()}")
                    monitor.call("quit")
                machine.wait(timeout=60)
            finally:
                machine.kill()
        return core, (work / "report").read_text()
