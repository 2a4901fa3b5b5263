"""What drgn has to be told of a ppc64 kernel: its linear map, and its byte order."""

from drgn import Architecture

from .. import architectures
from . import utsname

_PAGE_OFFSET = 0xC000000000000000
# From _PAGE_OFFSET to the first address that page tables map, H_KERN_VIRT_START of pages of 4 KB; with 64 KB and with
# the radix MMU it is higher.
_LINEAR_BYTES = 0x3D0000000000


def add_linear_map(prog):
    """Make the linear map of a ppc64 kernel readable in a program that reads physical memory.

    QEMU's cores have physical addresses only. drgn 0.3.0 then translates the linear map with the page tables, which
    are in the linear map, and only after the type of cur_cpu_spec is known. __va() is the same for every kernel
    (arch/powerpc/include/asm/page.h).
    """
    if prog.platform.arch is Architecture.PPC64:
        prog.add_memory_segment(
            _PAGE_OFFSET, _LINEAR_BYTES, lambda address, count, offset, physical: prog.read(offset, count, True)
        )


def check_byte_order(prog, source):
    """Check that a ppc64 kernel is little-endian; the header of QEMU's core is big-endian for either.

    :raises CollectError: ``bad_core``: it is not.
    """
    if prog.platform.arch is Architecture.PPC64:
        uts = utsname.read(prog)
        if uts is not None:
            architectures.check(uts.machine.decode(errors="replace"), source)
