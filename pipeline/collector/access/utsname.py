"""struct new_utsname of a kernel, read without its types: they are checked against it."""

from collections import namedtuple

from drgn import FaultError

from .. import formats
from . import kallsyms

# The first bytes of struct uts_namespace: a reference count in kernels up to v5.10, and struct new_utsname.
_UTS_BYTES = 8 + 6 * formats.UTS_FIELD_BYTES


class Utsname(namedtuple("Utsname", "sysname nodename release version machine domainname")):
    """The members of struct new_utsname (include/uapi/linux/utsname.h), as bytes."""

    __slots__ = ()


def read(prog):
    """Return the Utsname at the address of init_uts_ns in VMCOREINFO, or None if there is none."""
    try:
        data = prog.read(kallsyms.vmcoreinfo_symbols(prog)["init_uts_ns"], _UTS_BYTES)
    except (LookupError, ValueError, FaultError):
        return None
    start = data.find(b"Linux\0")
    return None if start < 0 else Utsname._make(formats.utsname_fields(data, start))
