"""A running QEMU guest from outside: attach to it over QEMU's monitor (QMP); nothing has to be in the guest.

drgn reads the memory of the QEMU process where it may (root, or whoever may ptrace it), else a KiB at a time through
the monitor, a hundred times slower. The guest runs on, but for the moment in which QEMU dumps its VMCOREINFO.
"""

import re
import socket
import time

import drgn

from .. import budget
from ..status import CollectError

PREFIX = "qmp:"
_GREETING_S = 5
_GREETING_BYTES = 4096
_POLL_S = 0.01
# struct uts_namespace has the release in its first 512 bytes in every version.
_UTS_BYTES = 512

_IN_USE = (
    "monitor in use (libvirt?): no greeting within %d s; start QEMU with a second -qmp unix:PATH,server=on,wait=off, "
    "audit what virsh dump --memory-only writes, or audit the guest over ssh" % _GREETING_S
)
_NO_VMCOREINFO = (
    "the guest's VMCOREINFO is not known; start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest, or "
    "give --vmcoreinfo FILE"
)


def attach(source, vmcoreinfo=None):
    """Return a program attached to the guest whose QEMU has its monitor at a socket.

    :param source: ``qmp:`` and the socket's path. :param vmcoreinfo: path of a file with the guest's VMCOREINFO, or
        None where QEMU knows it.
    :raises CollectError: with the status that says why.
    """
    if not hasattr(drgn.Program, "set_qemu_qmp"):
        version = getattr(drgn, "__version__", "older")
        message = "%s: a QEMU guest needs drgn 0.2.0 or newer, this is %s" % (source, version)
        raise CollectError("no_drgn", message, "AttributeError")
    note = None if vmcoreinfo is None else _note(vmcoreinfo)
    monitor = _greeted(source)
    guest = drgn.Program(vmcoreinfo=note)
    try:
        guest.set_qemu_qmp(monitor.detach())  # drgn closes it
    except Exception as e:
        # drgn has no class of its own for what a monitor answers, or leaves unanswered.
        raise CollectError("unreachable", "%s: %s" % (source, e), type(e).__name__) from e
    if note is None:
        if "VMCOREINFO" not in guest:
            raise CollectError("no_types", "%s: %s" % (source, _NO_VMCOREINFO), "LookupError")
        note = guest["VMCOREINFO"].string_()
    prog = _counted(guest, note)
    _check_fits(prog, source, vmcoreinfo)
    return prog


def _greeted(source):
    """Return a socket connected to a monitor that has greeted; the greeting is left in it for drgn.

    drgn would wait for one without end, and QEMU greets one client at a time.
    """
    monitor = socket.socket(socket.AF_UNIX)
    try:
        monitor.settimeout(_GREETING_S)
        monitor.connect(source[len(PREFIX) :])
        _await_greeting(monitor, source)
        monitor.setblocking(True)
    except CollectError:
        monitor.close()
        raise
    except OSError as e:
        monitor.close()
        raise _not_connected(e, source) from e
    return monitor


def _await_greeting(monitor, source):
    deadline = time.monotonic() + _GREETING_S
    while True:
        # Peeked at: a client that greets, goes away and comes back may find another one in its place.
        seen = monitor.recv(_GREETING_BYTES, socket.MSG_PEEK)
        if re.match(rb'\s*\{\s*"QMP"', seen):
            return
        if not seen:
            raise CollectError("unreachable", "%s: closed without a greeting; is QEMU ending?" % source)
        if not seen.lstrip().startswith(b"{") or time.monotonic() > deadline:
            message = "%s: not a QMP monitor; give the socket of QEMU's -qmp or of a -mon with mode=control" % source
            raise CollectError("unreachable", message)
        time.sleep(_POLL_S)


def _not_connected(error, source):
    if isinstance(error, PermissionError):
        status, reason = "denied", "run as root, or as the user that QEMU runs as"
    elif isinstance(error, (socket.timeout, BlockingIOError)):  # others wait already: EAGAIN
        status, reason = "unreachable", _IN_USE
    elif isinstance(error, FileNotFoundError):
        status, reason = "unreachable", "no such socket; start QEMU with -qmp unix:PATH,server=on,wait=off"
    elif isinstance(error, ConnectionRefusedError):
        status, reason = "unreachable", "nobody listens there; is QEMU running?"
    else:
        status, reason = "unreachable", error.strerror or str(error)
    return CollectError(status, "%s: %s" % (source, reason), type(error).__name__)


def _counted(guest, note):
    """Return a program on a guest's kernel whose reads count: process_vm_readv() is in nobody's /proc/PID/io."""

    def read(address, size, offset, physical):
        budget.count(size)
        return guest.read(address, size, physical)

    prog = drgn.Program(guest.platform, vmcoreinfo=note)
    prog.add_memory_segment(0, (1 << 64) - 1, read, physical=True)
    prog.set_linux_kernel_custom(note, True)
    return prog


def _note(path):
    """Return the text of a VMCOREINFO note in a file, which may have the note's header before it and zeros after it."""
    try:
        with open(path, "rb") as f:
            data = f.read(1 << 20)
    except OSError as e:
        raise CollectError("no_types", "%s: %s" % (path, e.strerror), type(e).__name__) from e
    start = data.find(b"OSRELEASE=")
    if start < 0:
        raise CollectError("no_types", "%s: no VMCOREINFO; it starts with OSRELEASE=" % path)
    return data[start:].split(b"\0")[0]


def _check_fits(prog, source, vmcoreinfo):
    """Check that VMCOREINFO leads to the release that it names: KASLR puts the kernel elsewhere at every boot."""
    text = prog["VMCOREINFO"].string_()
    release = re.search(rb"^OSRELEASE=(.+)$", text, re.MULTILINE)
    symbol = re.search(rb"^SYMBOL\(init_uts_ns\)=([0-9a-f]+)$", text, re.MULTILINE)
    try:
        found = prog.read(int(symbol.group(1), 16), _UTS_BYTES)
    except (AttributeError, drgn.FaultError):
        found = b""
    if not release or release.group(1) + b"\0" not in found:
        message = "%s: %s is not of this boot of the guest" % (source, vmcoreinfo or "its VMCOREINFO")
        raise CollectError("mismatch", message)
