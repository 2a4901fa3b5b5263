"""Attach to a running QEMU guest over QEMU's monitor (QMP); nothing has to be installed in the guest.

drgn reads the memory of the QEMU process where it may ptrace it, for example as root. Otherwise it reads a KiB at a
time through the monitor, which is a hundred times slower. The guest keeps running, except for the moment in which QEMU
dumps its VMCOREINFO.
"""

import re
import socket
import time

import drgn

from .. import budget
from ..status import CollectError

PREFIX = "qmp:"
# A monitor without another client sends its greeting immediately.
_GREETING_TIMEOUT_S = 5
_MAX_GREETING_BYTES = 4096
_POLL_S = 0.01
# The first bytes of struct uts_namespace, which include the release in every version.
_UTS_BYTES = 512

_IN_USE = (
    "monitor in use (libvirt?): no greeting within %d s; start QEMU with a second -qmp unix:PATH,server=on,wait=off, "
    "audit the core that virsh dump --memory-only writes, or audit the guest over ssh" % _GREETING_TIMEOUT_S
)
_NO_VMCOREINFO = (
    "QEMU does not know the guest's VMCOREINFO; start it with -device vmcoreinfo and load qemu_fw_cfg in the guest, or "
    "give --vmcoreinfo FILE"
)


def attach(source, vmcoreinfo=None):
    """Return a program attached to the guest of a QEMU monitor.

    :param source: ``qmp:`` and the socket's path.
    :param vmcoreinfo: path of a file with the guest's VMCOREINFO, or None if QEMU knows it.
    :raises CollectError: with the status that says why.
    """
    if not hasattr(drgn.Program, "set_qemu_qmp"):
        version = getattr(drgn, "__version__", "older")
        message = "%s: a QEMU guest needs drgn 0.2.0 or newer, this is %s" % (source, version)
        raise CollectError("no_drgn", message, "AttributeError")
    note = None if vmcoreinfo is None else _read_vmcoreinfo(vmcoreinfo)
    monitor = _connect(source)
    guest = drgn.Program(vmcoreinfo=note)
    try:
        guest.set_qemu_qmp(monitor.detach())  # drgn closes the socket
    except Exception as e:
        # drgn raises no specific class for a wrong or missing answer of a monitor.
        raise CollectError("unreachable", "%s: %s" % (source, e), type(e).__name__) from e
    if note is None:
        if "VMCOREINFO" not in guest:
            raise CollectError("no_types", "%s: %s" % (source, _NO_VMCOREINFO), "LookupError")
        note = guest["VMCOREINFO"].string_()
    prog = _counting_program(guest, note)
    _check_release(prog, source, vmcoreinfo)
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


def _counting_program(guest, note):
    """Return a program for a guest's kernel that counts its reads: /proc/PID/io leaves process_vm_readv() out."""

    def read(address, size, offset, physical):
        budget.count_read(size)
        return guest.read(address, size, physical)

    prog = drgn.Program(guest.platform, vmcoreinfo=note)
    prog.add_memory_segment(0, (1 << 64) - 1, read, physical=True)
    prog.set_linux_kernel_custom(note, True)
    return prog


def _read_vmcoreinfo(path):
    """Return the text of a VMCOREINFO note from a file that may have the note's header before and zeros after it."""
    try:
        with open(path, "rb") as f:
            data = f.read(1 << 20)
    except OSError as e:
        raise CollectError("no_types", "%s: %s" % (path, e.strerror), type(e).__name__) from e
    start = data.find(b"OSRELEASE=")
    if start < 0:
        raise CollectError("no_types", "%s: no VMCOREINFO: the text OSRELEASE= is missing" % path)
    return data[start:].split(b"\0")[0]


def _check_release(prog, source, vmcoreinfo):
    """Check that init_uts_ns, at its address in VMCOREINFO, has VMCOREINFO's release: KASLR moves it at every boot."""
    text = prog["VMCOREINFO"].string_()
    release = re.search(rb"^OSRELEASE=(.+)$", text, re.MULTILINE)
    symbol = re.search(rb"^SYMBOL\(init_uts_ns\)=([0-9a-f]+)$", text, re.MULTILINE)
    try:
        uts_data = prog.read(int(symbol.group(1), 16), _UTS_BYTES)
    except (AttributeError, drgn.FaultError):
        uts_data = b""
    if not release or release.group(1) + b"\0" not in uts_data:
        message = "%s: %s is not from this boot of the guest" % (source, vmcoreinfo or "its VMCOREINFO")
        raise CollectError("mismatch", message)
