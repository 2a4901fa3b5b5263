"""/proc/kcore, the memory of the running kernel, before drgn opens it: whether it may be read, or what would allow it.

Container runtimes and systemd mount another file over it, and the kernel refuses it to a root without CAP_SYS_RAWIO.
"""

import contextlib
import errno
import os
import re
import stat

from ..status import CollectError

PATH = "/proc/kcore"

_CAP_SYS_RAWIO = 17
_PRIVILEGED = "run it on the host, or in a container with --privileged (Kubernetes: securityContext.privileged: true)"


def check():
    """Check that the file is the memory of a kernel and may be read.

    :raises CollectError: ``denied``: it is missing, hidden or forbidden; with the remedy.
    """
    try:
        status = os.stat(PATH)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise _masked_error(_describe(status))
        with open(PATH, "rb") as f:
            if f.read(4) != b"\x7fELF":
                raise _masked_error("a file that is not the kernel's memory")
    except FileNotFoundError as e:
        raise CollectError("denied", _missing_reason(), type(e).__name__) from e
    except OSError as e:
        raise CollectError("denied", "%s: %s" % (PATH, _refusal_reason(e)), type(e).__name__) from e


def _describe(status):
    if stat.S_ISREG(status.st_mode):
        return "an empty file"
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
        return "/dev/null"
    return "a directory" if stat.S_ISDIR(status.st_mode) else "a device"


def _masked_error(cover):
    message = "%s is masked by %s: in a systemd service set ProtectKernelTunables=no, else %s"
    return CollectError("denied", message % (PATH, cover, _PRIVILEGED), "Masked")


def _missing_reason():
    if not os.path.exists("/proc/version"):
        return "%s is missing: /proc is not mounted there, or only with its processes (subset=pid)" % PATH
    return "%s is missing: this kernel has no CONFIG_PROC_KCORE, or is an imitation of Linux (gVisor, WSL 1)" % PATH


def _refusal_reason(error):
    """Return what forbids to open the file, and the remedy."""
    if "[confidentiality]" in _read("/sys/kernel/security/lockdown"):
        return "lockdown=confidentiality forbids it even to root; audit a core, or a guest from outside (qmp:)"
    if os.geteuid():
        return "run as root (over ssh: log in as root, or set become: true for sudo)"
    if not re.match(r"\s*0\s+0\s+4294967295\s*$", _read("/proc/self/uid_map")):
        return "this root is that of a user namespace (an unprivileged container), not of the host; " + _PRIVILEGED
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read("/proc/self/status"), re.MULTILINE)
    if capabilities and not int(capabilities.group(1), 16) >> _CAP_SYS_RAWIO & 1:
        return "this root lacks CAP_SYS_RAWIO; " + _PRIVILEGED
    if error.errno in (errno.EACCES, errno.EPERM):
        return "%s, even to root: by lockdown=confidentiality or a security module (AppArmor, SELinux)" % error.strerror
    return error.strerror


def _read(path):
    """Return the text of a small file, empty if it cannot be read."""
    with contextlib.suppress(OSError), open(path) as f:
        return f.read()
    return ""
