"""A core file before drgn opens it: what it is packed in, how much of it is there, and words for what is missing.

libkdumpfile maps a file into memory. Where the file ends early it reads zeros as if they were in the dump, or dies of
SIGBUS, so a kdump-compressed dump that does not contain all of its pages is not opened. drgn reads an ELF core with
pread(2), which fails past the end: such a core is opened.
"""

import contextlib
import os
import shlex
import stat
import struct
from collections import namedtuple

from drgn import FaultError

from .. import architectures, foreign, formats
from ..status import CollectError

DAMAGED = (
    "the core is truncated, zeroed or filtered (a makedumpfile older than the kernel filters slabs with the pages of "
    "processes; -d 23 keeps both)"
)
"""The reason for missing memory where the file itself gives none."""

# struct page_desc: offset, size, flags, page_flags.
_PAGE_DESCRIPTOR = "QIIQ"
_PAGE_DESCRIPTOR_BYTES = 24
# Descriptors to read at a time. Data lie in the order of descriptors: the last of them refer to the end of the file.
_DESCRIPTORS_PER_READ = 1 << 14
_BITMAP_BYTES_PER_READ = 1 << 20
_BIT_COUNTS = bytes(bin(byte).count("1") for byte in range(256))
# Bounds the files beside a part of a dump in which other parts are looked for.
_MAX_SIBLINGS = 10000

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class CoreFile(namedtuple("CoreFile", "note machine size_bytes")):
    """The facts about a core file that an audit needs.

    note: warning for a reader of the audit, or None. machine: utsname.machine, for drgn: it takes the byte order of
    QEMU's ppc64 cores from a wrong header, and libkdumpfile ignores the machine where QEMU left the rest of utsname
    empty. None for other cores that libkdumpfile reads. size_bytes: size of the file.
    """

    __slots__ = ()


def read_header(path):
    """Return the CoreFile of a path. A file that is not a core is left for drgn to refuse.

    :raises CollectError: ``bad_core``: not a file, or the core has to be unpacked, joined, converted or copied first.
    :raises OSError: the file cannot be read.
    """
    status = os.stat(path)
    for is_kind, kind in _KINDS:  # open(2) of a FIFO waits for a writer, that of a device may have effects
        if is_kind(status.st_mode):
            raise CollectError("bad_core", "%s: %s, not the file of a core" % (path, kind), "NotAFile")
    if not status.st_size:
        raise CollectError("bad_core", "%s is empty: the dump was not written" % path, "Incomplete")
    note = machine = None
    with formats.open_file(path) as f:
        head = f.read(formats.HEAD_BYTES)
        _check_not_packed(path, head)
        # That all records of a flattened core are there is checked by libkdumpfile itself.
        is_flattened = formats.is_flattened(head)
        dump = _unflattened_start(path, f) if is_flattened else f
        dump.seek(0)
        head = dump.read(formats.HEAD_BYTES)
        if formats.is_kdump(head):
            sysname, name = formats.kdump_utsname(head)
            if name:
                name = architectures.kdump_machine(name, head, path)
            machine = None if sysname else name
            header = formats.kdump_header(dump)
            if header is not None and header.split_pfns:
                raise _split_error(path, header)
            if not is_flattened:
                _check_pages(path, f, header, status.st_size)
            if header is not None and header.is_incomplete:
                note = "the dump is incomplete: its disk was full"
        elif head.startswith(b"\x7fELF"):
            machine = architectures.elf_core_machine(head, path)
            if is_flattened:
                machine = None  # drgn 0.3.0 crashes if it is told the platform of an ELF core that libkdumpfile reads
            else:
                segments, table_end = formats.elf_segments(f)
                expected_bytes = max([table_end, *(segment.offset + segment.file_bytes for segment in segments)])
                if expected_bytes > status.st_size:
                    note = "the core is truncated: %d of %d bytes" % (status.st_size, expected_bytes)
        elif is_flattened:
            message = "%s is flattened, and the record with the dump's header is missing: it was not written"
            raise CollectError("bad_core", message % path, "Incomplete")
        else:
            foreign.check(head, path)
    return CoreFile(note, machine, status.st_size)


def check_flattened(path, error):
    """Check that a core which drgn cannot open is not flattened.

    libkdumpfile opens it from 0.5.3 on, if the 16 bytes of its signature end in zeros. makedumpfile leaves there what
    its stack had.

    :param error: what drgn says.
    :raises CollectError: ``bad_core``: with the remedy.
    """
    with open(path, "rb") as f:
        if not formats.is_flattened(f.read(formats.HEAD_BYTES)):
            return
        try:
            for _ in formats.records(f):
                pass
        except EOFError:
            raise _cut_flattened_error(path) from None
    message = "%s is flattened, and this drgn does not read it; rearrange it: makedumpfile -R NEW < %s; drgn: %s"
    raise CollectError("bad_core", message % (path, shlex.quote(path), error), formats.PACKED) from error


@contextlib.contextmanager
def explained(note):
    """Put the reason that the file gives into the errors of the block.

    :param note: CoreFile.note, or None.
    :raises CollectError: also in place of FaultError.
    """
    try:
        yield
    except (FaultError, OSError) as e:  # OSError: pread(2) beyond what a file can have, or a failing disk
        message = "memory is missing; %s: %s" % (note or DAMAGED, e)
        raise CollectError("bad_core", message, type(e).__name__) from e
    except CollectError as e:
        if note is None or e.status not in ("bad_core", "no_types"):
            raise
        message = str(e)
        message = message.replace(DAMAGED, note) if DAMAGED in message else "%s; %s" % (message, note)
        raise CollectError(e.status, message, e.error_type) from e


def _check_not_packed(path, head):
    program = formats.compression(head)
    if program is not None:
        message = "%s is compressed; unpack it: %s -dc %s > NEW" % (path, program, shlex.quote(path))
        raise CollectError("bad_core", message, formats.PACKED)
    if formats.is_tar(head):
        raise CollectError(
            "bad_core", "%s is a tar archive; unpack it: tar -xf %s" % (path, shlex.quote(path)), formats.PACKED
        )


def _unflattened_start(path, f):
    try:
        return formats.unflattened_start(f)
    except EOFError:
        raise _cut_flattened_error(path) from None


def _cut_flattened_error(path):
    message = "%s is cut off: its end record is missing; makedumpfile did not finish, or the copy did not" % path
    return CollectError("bad_core", message, "Incomplete")


def _early_end_error(path, size_bytes, end):
    message = "%s ends early, after %d bytes of at least %d: it was cut off, or is still being written"
    return CollectError("bad_core", message % (path, size_bytes, end), "Incomplete")


def _split_error(path, header):
    directory = os.path.dirname(path)
    parts = [(header.split_pfns, path)]
    for name in sorted(os.listdir(directory or "."))[:_MAX_SIBLINGS]:
        sibling = os.path.join(directory, name)
        with contextlib.suppress(OSError):
            if os.path.isfile(sibling) and not os.path.samefile(sibling, path):
                with formats.open_file(sibling) as f:
                    other = formats.kdump_header(f)
                if other is not None and other.split_pfns and other.identity == header.identity:
                    parts.append((other.split_pfns, sibling))
    files = " ".join(shlex.quote(sibling) for _, sibling in sorted(parts))
    count = "" if len(parts) > 1 else "; the others are not beside it"
    message = "%s is a part of a dump (makedumpfile --split)%s; join all parts: makedumpfile --reassemble %s NEW"
    return CollectError("bad_core", message % (path, count, files), "Split")


def _check_pages(path, f, header, size_bytes):
    """Check that a kdump-compressed dump contains its bitmaps, the descriptors of its pages, and the pages' data.

    :param header: KdumpHeader, or None if it is not there.
    """
    if header is None:
        if size_bytes < formats.HEAD_BYTES:
            raise _early_end_error(path, size_bytes, formats.HEAD_BYTES)
        return
    end = max(header.bitmap_offset + header.bitmap_bytes, header.notes_end)
    if end <= size_bytes:
        descriptors = _page_count(f, header)
        table_offset = header.bitmap_offset + header.bitmap_bytes
        end = max(end, table_offset + descriptors * _PAGE_DESCRIPTOR_BYTES)
        if end <= size_bytes:
            end = max(end, _data_end(f, header.order, table_offset, descriptors))
    if end > size_bytes:
        raise _early_end_error(path, size_bytes, end)


def _page_count(f, header):
    """Return the number of pages in a dump."""
    offset, left = header.page_bitmap
    f.seek(offset)
    count = 0
    while left > 0:
        bits = f.read(min(left, _BITMAP_BYTES_PER_READ))
        left -= _BITMAP_BYTES_PER_READ
        count += 8 * bits.count(b"\xff") + sum(bits.translate(_BIT_COUNTS, b"\0\xff"))
    return count


def _data_end(f, order, table_offset, count):
    """Return the file offset at which the data of the last pages end; descriptors that were not written are zero.

    All pages of zeros share one descriptor, whose data come first. So descriptors are read up to one that differs.
    """
    end, data_offsets = 0, set()
    while count > 0 and len(data_offsets) < 2:
        start = max(0, count - _DESCRIPTORS_PER_READ)
        f.seek(table_offset + start * _PAGE_DESCRIPTOR_BYTES)
        table = f.read((count - start) * _PAGE_DESCRIPTOR_BYTES)
        for offset, size, _, _ in struct.iter_unpack(order + _PAGE_DESCRIPTOR, table):
            if offset:
                end = max(end, offset + size)
                data_offsets.add(offset)
        count = start
    return end
