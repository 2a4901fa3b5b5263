"""VMCOREINFO for a dump that lacks it: from a file, or found in the dumped memory. It is believed only if it fits.

QEMU adds the guest's VMCOREINFO to a dump only if the guest has told it where it is; other hypervisors never do. The
text itself is in the memory: the kernel keeps it in a page of its own since
commit 203e9e41219b ("kexec: move vmcoreinfo out of the kernel's .bss section") (in v4.13), before in a variable, and
both with and without the header of an ELF note.
"""

import re
import time

from drgn import FaultError

from .. import formats
from ..status import CollectError
from . import utsname

REMEDY = (
    "give --vmcoreinfo FILE, written by pmemsave in QEMU's monitor; or start QEMU with -device vmcoreinfo (libvirt: "
    "<vmcoreinfo state='on'/> in <features>) and load qemu_fw_cfg in the guest, which tells QEMU from Linux 4.17 on"
)
# What drgn has to know of a kernel before it reads physical memory, on arm64 the last three lines, too. Nothing is
# translated with it.
PLACEHOLDER = b"""OSRELEASE=4.0.0
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff81000000
KERNELOFFSET=0
NUMBER(VA_BITS)=48
NUMBER(kimage_voffset)=0x0
NUMBER(PHYS_OFFSET)=0x0
"""

_START = b"OSRELEASE="
# Lines of printable characters. Programs that read or write VMCOREINFO have its first words in memory, too.
_TEXT = re.compile(rb"OSRELEASE=(?:[ -~]+\n)+")
# The lines that differ between two boots, of which one may have left its memory to the other by kexec.
_BOOT_KEYS = (
    *(b"OSRELEASE", b"BUILD-ID", b"KERNELOFFSET", b"NUMBER(phys_base)"),
    *(b"SYMBOL(_stext)", b"SYMBOL(init_uts_ns)", b"SYMBOL(swapper_pg_dir)"),
)
_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20
# The kernel bounds the text to a page, which has at most 64 KiB.
_MAX_TEXT_BYTES = 64 << 10
# Bounds the search to less than half of the default --timeout. It takes an ELF core of 100 GB, or 20 GB of pages that
# are compressed by zlib.
_SEARCH_S = 240
# Bounds the texts that are tried: a host that collects dumps may have many in its page cache.
_MAX_BOOTS = 256


def read_file(path):
    """Return the text of VMCOREINFO from a file that may have the note's header before and zeros after it.

    :raises CollectError: ``no_types``: the file cannot be read or has no VMCOREINFO.
    """
    try:
        with formats.open_file(path) as f:
            data = f.read(1 << 20)
    except OSError as e:
        raise CollectError("no_types", "%s: %s" % (path, e.strerror), type(e).__name__) from e
    start = data.find(_START)
    if start < 0:
        raise CollectError("no_types", "%s: no VMCOREINFO: the text OSRELEASE= is missing" % path)
    return data[start:].split(b"\0")[0]


def check(prog, source, path=None):
    """Check that a program's VMCOREINFO is of the kernel in its memory.

    :param path: of the file that it comes from, or None if it comes with the memory.
    :raises CollectError: ``mismatch``.
    """
    if not _fits(prog):
        raise CollectError("mismatch", "%s: %s is not of this boot" % (source, path or "its VMCOREINFO"))


def find(prog, source, ranges, open_core):
    """Return the text of VMCOREINFO in the memory of a core.

    All of the memory is searched, because an earlier kernel's text may come before the right one, and its memory may
    still be as it left it.

    :param prog: program that reads the core's physical memory.
    :param ranges: start and end of each range of physical memory in the core.
    :param open_core: function of a text that returns a program with this VMCOREINFO.
    :raises CollectError: ``no_types``: there is none that fits, or several.
    """
    texts = {}
    deadline = time.monotonic() + _SEARCH_S
    searched_bytes = 0
    for address, data in _present_memory(prog, ranges):
        for text in _texts(prog, address, data):
            lines = dict(line.partition(b"=")[::2] for line in text.splitlines())
            boot = tuple(map(lines.get, _BOOT_KEYS))
            texts[boot] = max(texts.get(boot, b""), text, key=len)
        searched_bytes += len(data)
        excess = None
        if time.monotonic() > deadline:
            excess = "its memory takes more than %d s to search (%d MiB are done)" % (_SEARCH_S, searched_bytes >> 20)
        elif len(texts) > _MAX_BOOTS:
            excess = "its memory has that of more than %d kernels" % _MAX_BOOTS
        if excess is not None:
            raise CollectError("no_types", "%s: no VMCOREINFO in its notes, and %s; %s" % (source, excess, REMEDY))
    fitting_texts = [text for text in texts.values() if _opens_and_fits(open_core, text)]
    if len(fitting_texts) > 1:
        message = "%s: its memory has VMCOREINFO of %d kernels, as after kexec; give --vmcoreinfo FILE of one"
        raise CollectError("no_types", message % (source, len(fitting_texts)))
    if not fitting_texts:
        raise CollectError("no_types", "%s: no VMCOREINFO in its notes or memory; %s" % (source, REMEDY))
    return fitting_texts[0]


def _present_memory(prog, ranges):
    """Yield address and content of the memory in the ranges, in pieces of at most _CHUNK_BYTES, without holes."""
    for start, end in ranges:
        for address in range(start, end, _CHUNK_BYTES):
            yield from _present_pieces(prog, address, min(_CHUNK_BYTES, end - address))


def _present_pieces(prog, address, size):
    try:
        return [(address, prog.read(address, size, True))]
    except FaultError:
        if size <= _PAGE_BYTES:
            return []
    half = size // 2
    return _present_pieces(prog, address, half) + _present_pieces(prog, address + half, size - half)


def _texts(prog, address, data):
    """Yield each text of VMCOREINFO that begins in a piece of physical memory."""
    start = data.find(_START)
    while start >= 0:
        text = data[start : start + _MAX_TEXT_BYTES].split(b"\0")[0]
        if start + len(text) == len(data):  # it goes on in the next piece
            pieces = _present_pieces(prog, address + start, _MAX_TEXT_BYTES)
            text = pieces[0][1].split(b"\0")[0] if pieces and pieces[0][0] == address + start else text
        match = _TEXT.fullmatch(text)
        if match and b"\nSYMBOL(init_uts_ns)=" in text:
            yield text
        start = data.find(_START, start + 1)


def _opens_and_fits(open_core, text):
    try:
        return _fits(open_core(text))
    except Exception:  # drgn's errors for a text that lacks something have no class in common
        return False


def _fits(prog):
    """Whether init_uts_ns, at its address in VMCOREINFO, has the release in VMCOREINFO.

    KASLR moves the kernel at every boot, and the page tables that translate the address are this kernel's.
    """
    uts = utsname.read(prog)
    return uts is not None and uts.release == prog["UTS_RELEASE"].string_()
