"""Forms of dumps that hypervisors and forensic tools write and drgn does not read, and what makes a core of each.

Importable without drgn: the search of a directory uses the same list.
"""

from collections import namedtuple

from .status import CollectError

_SSH = "dump the guest with kdump, or audit it over ssh"
_DUMP = "virsh dump --memory-only DOMAIN FILE (QEMU's monitor: dump-guest-memory)"


class Foreign(namedtuple("Foreign", "name remedy")):
    """A form of dump: its name, and what to do."""

    __slots__ = ()

    def __str__(self):
        return "%s, which drgn does not read; %s" % self


_LIBVIRT = Foreign("a domain saved by libvirt", "virsh restore --paused it, then virsh dump --memory-only DOMAIN FILE")
_VMWARE = Foreign(
    "a suspended state or snapshot of VMware", "vmss2core -M FILE.vmss FILE.vmem writes a core of both files"
)
_HYPER_V = Foreign(
    "a saved state of Hyper-V", "Debug-VM -InjectNonMaskableInterrupt starts the guest's kdump; or audit it over ssh"
)
_XEN = Foreign("a domain saved by Xen", _SSH)
_WINDOWS = Foreign("a crash dump of Windows", "lru-audit audits Linux")
_RAW = Foreign("a raw image of memory", "of a guest that still runs: " + _DUMP)

# First bytes. Sources: libvirt's qemu_saveimage.h and libxl_conf.h; QEMU's migration/savevm.h; crash's vmware_vmss.h;
# OpenVMM's hvs_file; VirtualBox's SSM.cpp; Xen's xl.h and libxc; LiME's lime.h; AVML's image.rs; Firecracker's
# snapshot module.
_MAGICS = (
    (b"LibvirtQemudSave", _LIBVIRT),
    (b"LibvirtQemudPart", Foreign("a domain that libvirt did not save completely", "save it again: " + _DUMP)),
    (
        b"QEVM",
        Foreign("a migration stream of QEMU", "start QEMU with -incoming 'exec:cat FILE', then dump-guest-memory"),
    ),
    (b"\xd0\xbe\xd0\xbe", _VMWARE),
    (b"\xd0\xbe\xd2\xbe", _VMWARE),
    (b"\xd2\xbe\xd2\xbe", _VMWARE),
    (b"\xd3\xbe\xd3\xbe", _VMWARE),
    (b"\xd1\xba\xd1\xba", _VMWARE),
    (b"\xd2\xba\xd2\xba", _VMWARE),
    (b"\x14\x20\x28\x01", _HYPER_V),
    (
        b"\x7fVirtualBox SavedState V",
        Foreign(
            "a saved state of VirtualBox", "start the machine, then VBoxManage debugvm VM dumpvmcore --filename FILE"
        ),
    ),
    (b"Xen saved domain, xl format\n", _XEN),
    (b"LinuxGuestRecord", _XEN),
    (b"\xed\xeb\x0f\xf0", _XEN),
    (b"\xee\xeb\x0f\xf0", _XEN),
    (b"libvirt-xml\n \0 \r", _XEN),
    (b"EMiL", Foreign("memory in LiME's form", _SSH)),
    (b"AVML", Foreign("memory in AVML's form", _SSH)),
    (b"PAGEDU64", _WINDOWS),
    (b"PAGEDUMP", _WINDOWS),
    (b"\0\0\x64\x86\x84\x19\x10\x07", Foreign("a snapshot of Firecracker", _SSH)),
    (b"\0\0\xaa\xaa\x84\x19\x10\x07", Foreign("a snapshot of Firecracker", _SSH)),
    # The interrupt table of a PC BIOS, with the same unused vector twice.
    (b"\x53\xff\x00\xf0\x53\xff\x00\xf0", _RAW),
)
# Ends of names, for files without a magic.
_SUFFIXES = (
    ((".vmem", ".vmss", ".vmsn"), _VMWARE),
    ((".vmrs", ".vsv"), _HYPER_V),
)


def recognize(head, name):
    """Return the Foreign form of a file, or None.

    :param head: its first formats.HEAD_BYTES bytes.
    :param name: its name or path.
    """
    for magic, foreign in _MAGICS:
        if head.startswith(magic):
            return foreign
    for suffixes, foreign in _SUFFIXES:
        if name.lower().endswith(suffixes):
            return foreign
    return None


def check(head, path):
    """Check that a file is not of a form that has to be converted first.

    :raises CollectError: ``bad_core``: what it is, and what to do.
    """
    form = recognize(head, path)
    if form is not None:
        raise CollectError("bad_core", "%s: %s" % (path, form), "Foreign")
