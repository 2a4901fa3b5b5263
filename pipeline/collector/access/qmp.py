"""Attach to a running QEMU guest over QEMU's monitor (QMP); nothing has to be installed in the guest.

drgn reads the memory of the QEMU process where it may ptrace it, for example as root. Otherwise it reads a KiB at a
time through the monitor, which is a hundred times slower. The guest keeps running, except for the moment in which QEMU
dumps its VMCOREINFO.
"""

import re
import socket
import time

import drgn

from .. import architectures, budget
from ..status import CollectError
from . import ppc64, vmcoreinfo

PREFIX = "qmp:"
# A monitor without another client sends its greeting immediately.
_GREETING_TIMEOUT_S = 5
_MAX_GREETING_BYTES = 4096
_POLL_S = 0.01

# utsname.machine of drgn's architectures, which have the byte order that QEMU's guests of them have by default.
_MACHINES = {
    drgn.Architecture.X86_64: "x86_64",
    drgn.Architecture.AARCH64: "aarch64",
    drgn.Architecture.PPC64: "ppc64le",
    drgn.Architecture.S390X: "s390x",
}

_IN_USE = (
    "monitor in use (libvirt?): no greeting within %d s; start QEMU with a second -qmp unix:PATH,server=on,wait=off, "
    "audit the core that virsh dump --memory-only writes, or audit the guest over ssh" % _GREETING_TIMEOUT_S
)


def attach(source, vmcoreinfo_path=None):
    """Return a program attached to the guest of a QEMU monitor.

    :param source: ``qmp:`` and the socket's path.
    :param vmcoreinfo_path: path of a file with the guest's VMCOREINFO, or None if QEMU knows it.
    :raises CollectError: with the status that says why.
    """
    if not hasattr(drgn.Program, "set_qemu_qmp"):
        version = getattr(drgn, "__version__", "older")
        message = "%s: a QEMU guest needs drgn 0.2.0 or newer, this is %s" % (source, version)
        raise CollectError("no_drgn", message, "AttributeError")
    text = None if vmcoreinfo_path is None else vmcoreinfo.read_file(vmcoreinfo_path)
    monitor = _connect(source)
    guest = drgn.Program(vmcoreinfo=text)
    try:
        guest.set_qemu_qmp(monitor.detach())  # drgn closes the socket
    except Exception as e:
        # drgn raises no specific class for a wrong or missing answer of a monitor.
        raise CollectError("unreachable", "%s: %s" % (source, e), type(e).__name__) from e
    architectures.check(_MACHINES.get(guest.platform.arch, guest.platform.arch.name.lower()), source)
    if text is None:
        if "VMCOREINFO" not in guest:
            message = "%s: QEMU does not know the guest's VMCOREINFO; %s" % (source, vmcoreinfo.REMEDY)
            raise CollectError("no_types", message, "LookupError")
        text = guest["VMCOREINFO"].string_()
    prog = _counting_program(guest, text)
    vmcoreinfo.check(prog, source, vmcoreinfo_path)
    return prog


def _connect(source):
    """Return a socket connected to a monitor that has sent its greeting; drgn reads the greeting from it.

    QEMU greets one client at a time, and drgn would wait for the greeting without a timeout.
    """
    monitor = socket.socket(socket.AF_UNIX)
    try:
        monitor.settimeout(_GREETING_TIMEOUT_S)
        monitor.connect(source[len(PREFIX) :])
        _await_greeting(monitor, source)
        monitor.setblocking(True)
    except CollectError:
        monitor.close()
        raise
    except OSError as e:
        monitor.close()
        raise _connection_error(e, source) from e
    return monitor


def _await_greeting(monitor, source):
    deadline = time.monotonic() + _GREETING_TIMEOUT_S
    while True:
        # MSG_PEEK leaves the greeting for drgn. A second connection could lose the monitor to another client.
        greeting = monitor.recv(_MAX_GREETING_BYTES, socket.MSG_PEEK)
        if re.match(rb'\s*\{\s*"QMP"', greeting):
            return
        if not greeting:
            raise CollectError("unreachable", "%s: closed without a greeting; is QEMU exiting?" % source)
        if not greeting.lstrip().startswith(b"{") or time.monotonic() > deadline:
            message = "%s: not a QMP monitor; give the socket of QEMU's -qmp or of a -mon with mode=control" % source
            raise CollectError("unreachable", message)
        time.sleep(_POLL_S)


def _connection_error(error, source):
    """Return the CollectError for an OSError of the monitor's socket."""
    if isinstance(error, PermissionError):
        status, reason = "denied", "run as root, or as the user that QEMU runs as"
    elif isinstance(error, (socket.timeout, BlockingIOError)):  # EAGAIN: the backlog is full of other clients
        status, reason = "unreachable", _IN_USE
    elif isinstance(error, FileNotFoundError):
        status, reason = "unreachable", "no such socket; start QEMU with -qmp unix:PATH,server=on,wait=off"
    elif isinstance(error, ConnectionRefusedError):
        status, reason = "unreachable", "no process listens on this socket; is QEMU running?"
    else:
        status, reason = "unreachable", error.strerror or str(error)
    return CollectError(status, "%s: %s" % (source, reason), type(error).__name__)


def _counting_program(guest, text):
    """Return a program for a guest's kernel that counts its reads: /proc/PID/io leaves process_vm_readv() out."""

    def read(address, size, offset, physical):
        budget.count_read(size)
        return guest.read(address, size, physical)

    prog = drgn.Program(guest.platform, vmcoreinfo=text)
    prog.add_memory_segment(0, (1 << 64) - 1, read, physical=True)
    ppc64.add_linear_map(prog)
    prog.set_linux_kernel_custom(text, True)
    return prog
