"""What tells one machine, and one boot of it, from another with the same node name."""

import contextlib
import hashlib
import os

from drgn import FaultError

from .access.memory import is_own

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BOOT_ID_BYTES = 16
_MACHINE_ID = "/etc/machine-id"
_MACHINE_ID_DIGITS = 32


def boot_id(prog):
    """Return the random id of this boot, or None if the kernel has not made one or the memory is missing.

    It is read from kernel memory, since a container may have another file mounted over the kernel's.
    """
    try:
        address = prog.symbol("sysctl_bootid").address
        digits = prog.read(address, _BOOT_ID_BYTES).hex()
        if not digits.strip("0") and is_own(prog):
            with contextlib.suppress(OSError), open(_BOOT_ID) as file:
                file.read()  # the kernel makes the id when it is first read
            digits = prog.read(address, _BOOT_ID_BYTES).hex()
    except (LookupError, FaultError):
        return None
    if not digits.strip("0"):
        return None
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def machine_id(prog):
    """Return a digest of this machine's id if the kernel is that of the machine where this runs, else None.

    The id itself is confidential (machine-id(5)). A container has an id of its own: outside of the host's mount
    namespace there is none.
    """
    if not is_own(prog):
        return None
    try:
        host_namespace = prog["init_task"].nsproxy.mnt_ns.ns.inum.value_()
        if os.stat("/proc/self/ns/mnt").st_ino != host_namespace:
            return None
        with open(_MACHINE_ID, "rb") as file:
            digits = file.read().strip()
    except OSError:
        return None
    if len(digits) != _MACHINE_ID_DIGITS:  # empty, or "uninitialized" during the first boot
        return None
    return hashlib.sha256(b"list-lru-audit " + digits).hexdigest()[:_MACHINE_ID_DIGITS]
