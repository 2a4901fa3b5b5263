"""Boot a shape under QEMU, wait until its guest is idle, and take its report and its core."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab import initramfs, userland
from tests.lab.kernels import Kernel, LabError
from tests.lab.shapes import Shape

IDLE_PREFIX = "LAB-IDLE "
"""Prefix of the console line that gives the size of each part of the report: a tar, and the files LAST_FILES."""
LAST_FILES = ("slabinfo", "meminfo")
"""What the guest reads last, when it runs no process any more."""
FAILURE_PREFIX = "LAB: FAILED"
REPORT_TIMEOUT_S = 30
"""Timeout for the rest of a report after the idle line. A serial line has less than a second of data."""
SILENCE_TIMEOUT_S = 400
"""Timeout for a new line on the console of a guest that is not idle. The slowest shape, the commit message's server,
takes 150 s in all on two cores."""
REPORT_DEVICE = "socket,id=report,path=command,server=on,wait=off,logfile=report"
"""Character device of the report's line. All that the guest writes there is in the file `report`, and what a client of
the socket `command` sends reaches the guest."""
MAX_BOOTS = 3
"""Boots of a guest that panics or hangs, before it counts as a failure. QEMU 7.2 now and then breaks a kernel."""


class Machine(NamedTuple):
    """QEMU's machine for an architecture, with a serial console and a second serial line for the report."""

    qemu: tuple[str, ...]
    report: tuple[str, ...]
    """The second serial line, on the character device "report"."""
    ttys: tuple[str, str]
    """The kernel's names of the console and of the report's line."""
    has_numa: bool = True


VMCOREINFO = ("-device", "vmcoreinfo")
"""The device that puts VMCOREINFO into the dump, with the guest's module qemu_fw_cfg: not on ppc64le and s390x, whose
machines have no fw_cfg."""

MACHINES = {
    # Without cmpxchg16b: QEMU 7.2 sets its flags wrongly, and the slab allocator of 6.4 and later relies on them.
    "amd64": Machine(
        ("qemu-system-x86_64", "-cpu", "max,-cx16", *VMCOREINFO), ("-serial", "chardev:report"), ("ttyS0", "ttyS1")
    ),
    # The machine "virt" has a single serial port. The second one is on PCI: Debian's kernels have its driver built in.
    "arm64": Machine(
        ("qemu-system-aarch64", "-machine", "virt,gic-version=3", "-cpu", "neoverse-n1", *VMCOREINFO),
        ("-device", "pci-serial,chardev=report"),
        ("ttyAMA0", "ttyS0"),
    ),
    # A node has a multiple of 256 MB. The kernel uses the radix MMU.
    "ppc64el": Machine(
        ("qemu-system-ppc64", "-machine", "pseries", "-cpu", "power9"), ("-serial", "chardev:report"), ("hvc0", "hvc1")
    ),
    "s390x": Machine(
        ("qemu-system-s390x", "-machine", "s390-ccw-virtio"),
        ("-device", "virtio-serial-ccw", "-device", "virtconsole,chardev=report"),
        ("ttyS1", "hvc0"),
        has_numa=False,
    ),
}
"""Machine by Debian's name of its architecture."""

IdleAction = Callable[[Path], object]
"""Action on an idle guest before its core is dumped; its argument is the machine's working folder."""


def no_action(_: Path) -> None:
    """Do nothing: the IdleAction of a guest that is only dumped."""


def take_core(
    shape: Shape,
    kernel: Kernel,
    folder: Path,
    live: bool = False,
    churn: bool = False,
    idle_action: IdleAction = no_action,
) -> None:
    """Boot `shape` and write its full ELF core to `folder`/vmcore and the guest's report to `folder`/truth/.

    If the core's symbol table has functions only, and `kernel` has a System.map, the System.map is copied to `folder`.

    :param live: also put the collector into the guest; its report then has the audits of guest/live or
        guest/churn-live.
    :param churn: run guest/churn, so that the guest never rests.
    """
    if live:
        shape = dataclasses.replace(shape, memory_mb=shape.memory_mb + userland.MEMORY_MB)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        initramfs.pack(shape, kernel, work / "initramfs", live, churn)
        run(qemu(shape, kernel), work, folder, idle_action)
    if kernel.system_map and "super_blocks" not in (folder / "truth/kallsyms").read_text():
        shutil.copy(kernel.system_map, folder)


def run(
    command: Sequence[str | os.PathLike[str]],
    work: Path,
    folder: Path,
    idle_action: IdleAction = no_action,
) -> None:
    """Run a machine in `work` until its guest is idle, and write its core and report to `folder`.

    :param command: command line of QEMU, for example from qemu().
    """
    folder.mkdir(parents=True, exist_ok=True)
    with idle_machine(command, work) as sizes:
        report = receive(work / "report", sum(sizes))
        idle_action(work)
        with Monitor(work / "qmp") as monitor:
            monitor.call("stop")
            core = folder / "vmcore"
            core.unlink(missing_ok=True)
            monitor.call("dump-guest-memory", paging=False, protocol=f"file:{core.resolve()}")
            monitor.call("quit")
    truth = folder / "truth"
    truth.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xz", "-C", truth], input=report[: sizes[0]], check=True)
    for name, start, size in zip(LAST_FILES, itertools.accumulate(sizes), sizes[1:], strict=False):
        (truth / name).write_bytes(report[start : start + size])


def receive(report: Path, size: int) -> bytes:
    """The report of a guest, which may still be on the line when its idle line is there."""
    deadline = time.monotonic() + REPORT_TIMEOUT_S
    while report.stat().st_size < size and time.monotonic() < deadline:
        time.sleep(0.2)
    content = report.read_bytes()
    if len(content) != size:
        raise LabError(f"the guest sent a report of {size} bytes, but {len(content)} bytes arrived; boot it again")
    return content


@contextlib.contextmanager
def idle_machine(command: Sequence[str | os.PathLike[str]], work: Path) -> Iterator[list[int]]:
    """Boot a machine in `work`, and yield the sizes of its report's parts when it is idle; end it with the block."""
    console = work / "console"
    for _ in range(MAX_BOOTS):
        console.unlink(missing_ok=True)
        with subprocess.Popen(command, cwd=work, stdin=subprocess.DEVNULL) as machine:
            try:
                sizes = wait_idle(machine, console)
                if sizes is not None:
                    yield sizes
                    return
            finally:
                machine.kill()
    text = console.read_text(errors="replace")
    raise LabError(f"each of {MAX_BOOTS} boots panicked or hung; the end of the last console: {tail(text)}")


def qemu(shape: Shape, kernel: Kernel) -> list[str]:
    """The command line of the machine. The console, the report and the QMP sockets are files in its working folder.

    A monitor takes one client at a time, so there are two sockets: `qmp` for the lab, `audit` for an audit.
    """
    machine = MACHINES[shape.arch]
    console, report = machine.ttys
    command = [
        *machine.qemu,
        # TCG is explicit, because a /dev/kvm that exists can still hang.
        "-accel", "tcg,thread=multi", "-nodefaults", "-no-user-config", "-display", "none",
        "-smp", str(shape.possible_cpus),
        # With maxmem above the size the firmware also declares the nodes without memory: possible, never online.
        "-m", f"{shape.memory_mb}M" + (f",slots=1,maxmem={2 * shape.memory_mb}M" if shape.offline_nodes else ""),
        "-serial", "file:console", "-chardev", REPORT_DEVICE, *machine.report,
        "-qmp", "unix:qmp,server=on,wait=off",
        "-qmp", "unix:audit,server=on,wait=off",
        "-kernel", str(kernel.vmlinuz.resolve()), "-initrd", "initramfs",
        # The other CPUs are possible, not started. Kernels since November 2025 ignore those that could be plugged in.
        "-append", f"console={console} quiet panic=-1 maxcpus=2 rdinit=/init lab_report=/dev/{report}", "-no-reboot",
    ]  # fmt: skip
    for node in range(shape.nodes if machine.has_numa else 0):
        command += ["-object", f"memory-backend-ram,id=m{node},size={shape.memory_mb // shape.nodes}M"]
        command += [
            "-numa",
            f"node,nodeid={node},memdev=m{node}" + (f",cpus=0-{shape.possible_cpus - 1}" if node == 0 else ""),
        ]
    for node in range(shape.nodes, shape.nodes + shape.offline_nodes):
        command += ["-numa", f"node,nodeid={node}"]
    return command


def wait_idle(machine: subprocess.Popen[bytes], console: Path) -> list[int] | None:
    """Wait for a guest's idle line, and return its report's sizes in bytes; None if it panicked or hangs."""
    last_text, deadline = "", time.monotonic() + SILENCE_TIMEOUT_S
    while True:
        has_ended = machine.poll() is not None
        text = console.read_text(errors="replace") if console.exists() else ""
        for line in text.split("\n")[:-1]:
            if line.startswith(IDLE_PREFIX):
                return [int(size) for size in line.removeprefix(IDLE_PREFIX).split()]
        if "Kernel panic" in text:
            return None
        if has_ended or FAILURE_PREFIX in text:
            raise LabError(f"the guest ended before it was idle; the end of its console: {tail(text)}")
        if text != last_text:
            last_text, deadline = text, time.monotonic() + SILENCE_TIMEOUT_S
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)


def tail(console_text: str) -> str:
    """The last lines of a console, as one."""
    return " | ".join(console_text.splitlines()[-5:]) or "nothing"


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
        """Run a command and return its result."""
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"QEMU closed its monitor during {command}")
