"""The architectures whose kernels can be audited.

Importable without drgn: a host of another architecture may have no drgn at all.
"""

import struct

from .status import CollectError

_ET_CORE = 4
_LITTLE_ENDIAN, _BIG_ENDIAN = 1, 2

# utsname.machine by e_machine, EI_CLASS (1: 32 bits, 2: 64 bits) and EI_DATA of an ELF core.
_BY_ELF_HEADER = {
    (62, 2, _LITTLE_ENDIAN): "x86_64",
    (183, 2, _LITTLE_ENDIAN): "aarch64",
    (21, 2, _LITTLE_ENDIAN): "ppc64le",
    (21, 2, _BIG_ENDIAN): "ppc64le",  # by QEMU, whatever the guest is; access/ppc64.py looks at the kernel
    (22, 2, _BIG_ENDIAN): "s390x",
}
SUPPORTED = ("x86_64", "aarch64", "ppc64le", "s390x")

# utsname.machine by QEMU 7.2's name in a kdump-compressed core, and whether that is little-endian. Where QEMU has no
# name, the supported architecture without one: libkdumpfile refuses the others, by the size of their registers.
_QEMU_MACHINES = {("S390X", False): "s390x", ("Unknown", True): "aarch64", ("Unknown", False): "ppc64le"}
_KDUMP_VERSION_OFFSET = 8

# Names for messages, by e_machine.
_ELF_MACHINES = {
    2: "sparc",
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    43: "sparc64",
    62: "x86_64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}


def check(machine, source):
    """Check that kernels of an architecture can be audited.

    :param machine: ``utsname.machine``.
    :param source: file, host or monitor, for the message.
    :raises CollectError: ``bad_core``: they cannot. The status is not ``unsupported``, which is good and means that the
        kernel has no list_lrus for memcgs: this kernel may well have them.
    """
    if machine not in SUPPORTED:
        message = "%s: this architecture is not supported: %s; supported are %s" % (
            source,
            machine,
            ", ".join(SUPPORTED),
        )
        raise CollectError("bad_core", message, "UnsupportedArchitecture")


def kdump_machine(name, head, source):
    """Return the ``utsname.machine`` of a kdump-compressed core, checked as by check().

    :param name: utsname.machine in the header; not empty.
    :param head: first bytes of the core.
    """
    # The header's version, at most 6, tells its byte order.
    is_little_endian = bool(head[_KDUMP_VERSION_OFFSET])
    machine = _QEMU_MACHINES.get((name, is_little_endian), name)
    check(machine, source)
    return machine


def elf_core_machine(header, source):
    """Return the ``utsname.machine`` of an ELF core, checked as by check(), or None for another ELF file.

    :param header: first bytes of the file.
    """
    if len(header) < 20:
        return None
    elf_class, data = header[4:6]
    elf_type, elf_machine = struct.unpack_from((">" if data == _BIG_ENDIAN else "<") + "2H", header, 16)
    if elf_type != _ET_CORE:
        return None
    machine = _BY_ELF_HEADER.get((elf_machine, elf_class, data))
    if machine is None:
        machine = "%s (%d bits, %s-endian)" % (
            _ELF_MACHINES.get(elf_machine, "ELF machine %d" % elf_machine),
            64 if elf_class == 2 else 32,
            "big" if data == _BIG_ENDIAN else "little",
        )
    check(machine, source)
    return machine
