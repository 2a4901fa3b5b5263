"""Boots a shape under QEMU, waits until its guest is idle, and takes its report and its core."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab import initramfs, userland
from tests.lab.kernels import Kernel, LabError
from tests.lab.shapes import Shape

IDLE = "LAB-IDLE "
FAILED = "LAB: FAILED"
IDLE_TIMEOUT_S = 1200
"""The slowest shape, the commit message's server, takes 150 s on two cores."""


BOOTS = 3
"""How often a guest is booted that panics."""


class Machine(NamedTuple):
    """How QEMU makes a machine of an architecture, with a console and a second line for the report."""

    qemu: tuple[str, ...]
    report: tuple[str, ...]
    lines: tuple[str, str]
    """What the kernel calls these two."""


MACHINES = {
    # QEMU 7.2's cmpxchg16b sets wrong flags, on which the slab allocator of 6.4 and later relies.
    "amd64": Machine(("qemu-system-x86_64", "-cpu", "max,-cx16"), ("-serial", "file:report"), ("ttyS0", "ttyS1")),
    # One serial port is all that "virt" has; the driver of a PCI one is built into Debian's kernels.
    "arm64": Machine(
        ("qemu-system-aarch64", "-machine", "virt,gic-version=3", "-cpu", "neoverse-n1"),
        ("-chardev", "file,id=report,path=report", "-device", "pci-serial,chardev=report"),
        ("ttyAMA0", "ttyS0"),
    ),
}
"""By Debian's name of the architecture."""


AtRest = Callable[[Path], object]
"""What is done with an idle guest before its core is taken; it gets the machine's working folder."""


def nothing(_: Path) -> None:
    """The AtRest of a guest that is only dumped."""


def take_core(
    shape: Shape, kernel: Kernel, to: Path, live: bool = False, churn: bool = False, at_rest: AtRest = nothing
) -> None:
    """Boot `shape`, leave its full ELF core in `to`/vmcore and the guest's report in `to`/truth/.

    Beside a core whose symbol table has functions only goes the System.map, where `kernel` has it.

    :param live: the guest has the collector too, and its report the audits of guest/live, or guest/churn-live.
    :param churn: the guest never rests, but does what guest/churn says.
    """
    if live:
        shape = dataclasses.replace(shape, memory_mb=shape.memory_mb + userland.MEMORY_MB)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        initramfs.pack(shape, kernel, work / "initramfs", live, churn)
        run(qemu(shape, kernel), work, to, at_rest)
    if kernel.system_map and "super_blocks" not in (to / "truth/kallsyms").read_text():
        shutil.copy(kernel.system_map, to)


def run(command: Sequence[str | os.PathLike[str]], work: Path, to: Path, at_rest: AtRest = nothing) -> None:
    """Run a machine in `work` until its guest is idle; its core and report go to `to`.

    QEMU 7.2 now and then breaks a kernel on a busy machine, so a guest that panics is booted again.

    :param command: such as qemu()'s.
    """
    to.mkdir(parents=True, exist_ok=True)
    for boots_left in reversed(range(BOOTS)):
        try:
            run_once(command, work, to, at_rest)
            break
        except LabError:
            if not boots_left or "Kernel panic" not in (work / "console").read_text(errors="replace"):
                raise


def run_once(command: Sequence[str | os.PathLike[str]], work: Path, to: Path, at_rest: AtRest) -> None:
    with subprocess.Popen(command, cwd=work, stdin=subprocess.DEVNULL) as machine:
        try:
            size = wait_idle(machine, work / "console", time.monotonic() + IDLE_TIMEOUT_S)
            at_rest(work)
            with Monitor(work / "qmp") as monitor:
                monitor.call("stop")
                core = to / "vmcore"
                core.unlink(missing_ok=True)
                monitor.call("dump-guest-memory", paging=False, protocol=f"file:{core.resolve()}")
                monitor.call("quit")
            machine.wait(timeout=60)
        finally:
            machine.kill()
    truth = (work / "report").read_bytes()
    if len(truth) != size:
        raise LabError(f"the guest sent {size} bytes of report, {len(truth)} arrived; boot it again")
    (to / "truth").mkdir(exist_ok=True)
    subprocess.run(["tar", "-xz", "-C", to / "truth"], input=truth, check=True)


def qemu(shape: Shape, kernel: Kernel) -> list[str]:
    """The command line of the machine: the console, the report and QMP sockets are files in its working folder.

    `qmp` is the lab's own, `audit` is for others: a monitor has one client at a time.
    """
    machine = MACHINES[shape.arch]
    console, report = machine.lines
    command = [
        *machine.qemu,
        # TCG by name: a /dev/kvm that is present can still hang.
        "-accel", "tcg,thread=multi", "-nodefaults", "-no-user-config", "-display", "none", "-smp", "2",
        # Room for memory to be added makes the firmware declare the nodes without memory: possible, never online.
        "-m", f"{shape.memory_mb}M" + (f",slots=1,maxmem={2 * shape.memory_mb}M" if shape.offline_nodes else ""),
        # With the guest's qemu_fw_cfg this puts VMCOREINFO into the dump.
        "-device", "vmcoreinfo",
        "-serial", "file:console", *machine.report, "-qmp", "unix:qmp,server=on,wait=off",
        "-qmp", "unix:audit,server=on,wait=off",
        "-kernel", str(kernel.vmlinuz.resolve()), "-initrd", "initramfs",
        "-append", f"console={console} quiet panic=-1 rdinit=/init lab_report=/dev/{report}", "-no-reboot",
    ]  # fmt: skip
    for node in range(shape.nodes):
        command += ["-object", f"memory-backend-ram,id=m{node},size={shape.memory_mb // shape.nodes}M"]
        command += ["-numa", f"node,nodeid={node},memdev=m{node}" + (",cpus=0-1" if node == 0 else "")]
    for node in range(shape.nodes, shape.nodes + shape.offline_nodes):
        command += ["-numa", f"node,nodeid={node}"]
    return command


def wait_idle(machine: subprocess.Popen[bytes], console: Path, deadline: float) -> int:
    """Wait for the guest's idle line; the size in bytes of the report that it has sent."""
    while True:
        lines = console.read_text(errors="replace").splitlines() if console.exists() else []
        for line in lines:
            if line.startswith(IDLE):
                return int(line.removeprefix(IDLE))
        last = lines[-1] if lines else "nothing"
        if machine.poll() is not None or any(FAILED in line for line in lines):
            raise LabError(f"the guest ended before it was idle; its console: {' | '.join(lines[-5:])}")
        if time.monotonic() > deadline:
            raise LabError(f"the guest was not idle in time; its console ends with: {last}")
        time.sleep(0.2)


class Monitor:
    """A QMP session with a running QEMU."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.lines.readline()  # the greeting
        self.call("qmp_capabilities")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def call(self, command: str, **arguments: Any) -> Any:
        """Run a command to its end and return what it returns."""
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"QEMU went away during {command}")
