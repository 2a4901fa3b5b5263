"""The kernel's DWARF, from a file that was given or found, and checked before it is believed.

A build id identifies the vmlinux. VMCOREINFO has it since commit 0935288c6e00 ("kdump: append kernel build-id string to
VMCOREINFO") (in v5.9). For an older kernel it is read from the kernel's notes, whose address its symbol table has. If
that table is missing, the banner, the addresses and the types tell builds apart, and the notes at the addresses of the
vmlinux.
"""

import mmap
import os
import re
import struct

from drgn import FaultError, MissingDebugInfoError, ModuleFileStatus, Program

from ..status import CollectError
from . import build_check, kallsyms
from .memory import struct_prefix

_STANDARD_DIRECTORIES = ("/usr/lib/debug", "/")
# Where packages and people put the vmlinux of a release.
_LOCATIONS = (
    "lib/modules/%s/vmlinux",  # Fedora, RHEL, Oracle, Amazon, Debian
    "boot/vmlinux-%s",  # Debian, Ubuntu
    "boot/vmlinux-%s.debug",  # SUSE
    "usr/lib/modules/%s/vmlinux.debug",  # SUSE with a merged /usr
    "lib/modules/%s/vmlinux.debug",
    "lib/modules/%s/build/vmlinux",  # a kernel built on this machine
    "usr/lib/modules/%s/build/vmlinux",
    "%s/vmlinux",
    "vmlinux-%s",
    "vmlinux-%s.debug",
)
_FLAT_LOCATION = "vmlinux"
# A directory may hold a package's files from their root on.
_PREFIXES = ("", "usr/lib/debug")

# linux_banner of init/version.c: release, builder and compiler, version.
_BANNER_START = b"Linux version "
_BANNER = re.compile(rb"Linux version (\S+) \([^\0\n#]*(#[^\0\n]*)")
_MAX_BANNER_BYTES = 1024
# An Elf64_Nhdr of include/uapi/linux/elf.h has the sizes of a name and of what it describes, here a SHA-1, and a type.
_NT_GNU_BUILD_ID = 3
_BUILD_ID_BYTES = 20
# Limit of .notes: 512 bytes in a distribution's kernel.
_MAX_NOTES_BYTES = 64 << 10


def load(prog, source, vmlinux=None, debug_dirs=()):
    """Load the kernel's DWARF.

    :param vmlinux: path of the file, or None to search for it.
    :param debug_dirs: directories to search, by default drgn's standard places.
    :raises CollectError: ``mismatch``: the file is of another build; ``no_types``: there is none.
    """
    build = build_check.read_build(prog)
    prog.create_loaded_modules()
    module = prog.main_module()
    if module.build_id is None:
        module.build_id = _read_build_id(prog)
    try:
        if vmlinux is not None:
            _load_file(module, source, vmlinux, build)
        else:
            _search(prog, source, debug_dirs or _STANDARD_DIRECTORIES, build)
    except OSError as e:
        raise CollectError("no_types", "%s: %s" % (e.filename, e.strerror), type(e).__name__) from e
    _use_symbols_of_vmlinux(prog)
    differences = _differences(prog)
    if differences:
        raise _mismatch_error(module.debug_file_path, source, build, differences)


def _load_file(module, source, vmlinux, build):
    if not os.path.isfile(vmlinux):
        reason = "not a regular file" if os.path.exists(vmlinux) else "no such file"
        raise CollectError("no_types", "%s: %s" % (vmlinux, reason))
    differences = _file_differences(vmlinux, module, build)
    if differences:
        raise _mismatch_error(vmlinux, source, build, differences)
    module.try_file(vmlinux)
    if module.debug_file_status != ModuleFileStatus.HAVE:
        raise CollectError("no_types", "%s: not a vmlinux with DWARF; give %s" % (vmlinux, build.vmlinux))


def _search(prog, source, directories, build):
    """Load the vmlinux of the build from below directories, or from where drgn's own finders have it."""
    module = prog.main_module()
    misfits = []
    for path in _existing_files(directories, _locations(module.build_id, build.release)):
        differences = _file_differences(path, module, build)
        if differences:
            misfits.append((path, differences))
            continue
        module.try_file(path)
        if module.debug_file_status == ModuleFileStatus.HAVE:
            return
    if module.build_id is not None:
        # The finders of drgn check the build id, and nothing else.
        prog.debug_info_options.directories = tuple(map(os.path.abspath, directories))
        try:
            prog.load_debug_info(main=True)
            return
        except MissingDebugInfoError:
            pass
    if misfits:
        raise _mismatch_error(misfits[0][0], source, build, misfits[0][1])
    message = "%s: %s%s is not below %s; looked there, and below %s there, at %s" % (
        source,
        build.vmlinux,
        " with build id " + module.build_id.hex() if module.build_id else "",
        ", ".join(map(str, directories)),
        _PREFIXES[1],
        ", ".join(_locations(module.build_id, "RELEASE")),
    )
    raise CollectError("no_types", message)


def _locations(build_id, release):
    """Return the paths, relative to a directory, at which a vmlinux may lie."""
    locations = [location % release for location in _LOCATIONS] + [_FLAT_LOCATION]
    if build_id is None:
        return locations
    return [".build-id/%s/%s.debug" % (build_id.hex()[:2], build_id.hex()[2:]), *locations]


def _existing_files(directories, locations):
    for directory in directories:
        for prefix in _PREFIXES:
            for location in locations:
                path = os.path.join(directory, prefix, location)
                if os.path.isfile(path):
                    yield path


def _file_differences(path, module, build):
    """Return how a file identifies itself as another build than the kernel, as a list of texts."""
    build_id = _build_id_of_file(path)
    if build_id is not None and build_id == module.build_id:
        return []
    differences = []
    release, version = _banner_of_file(path)
    if release not in (None, build.release):
        differences.append("release is %s, not %s" % (release, build.release))
    if None not in (version, build.version) and version != build.version:
        differences.append("version is %s, not %s" % (version, build.version))
    if None not in (build_id, module.build_id):
        differences.append("build id is %s, not %s" % (build_id.hex(), module.build_id.hex()))
    return differences


def _build_id_of_file(path):
    """Return the build id of an ELF file, or None."""
    module = Program().extra_module(path, create=True)
    try:
        module.try_file(path)
    except Exception:  # drgn has no class of its own for a file that libelf cannot read
        return None
    return module.build_id


def _banner_of_file(path):
    """Return the release and the version in a vmlinux' linux_banner; both are None in a file without its contents."""
    with open(path, "rb") as f:
        if not os.fstat(f.fileno()).st_size:
            return None, None
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_BANNER_START)
            banner = _BANNER.match(data[start : start + _MAX_BANNER_BYTES]) if start >= 0 else None
    return tuple(text.decode(errors="replace") for text in banner.groups()) if banner else (None, None)


def _read_build_id(prog):
    """Return the build id in the kernel's notes, found by its own symbol table, or None."""
    try:
        find_symbols = kallsyms.load(prog, ())
    except (CollectError, FaultError):
        return None
    notes = _read_notes(prog, lambda name: find_symbols(prog, name, None, True)[0].address)
    header = struct.pack(struct_prefix(prog) + "3I4s", 4, _BUILD_ID_BYTES, _NT_GNU_BUILD_ID, b"GNU\0")
    _, found_header, rest = (notes or b"").partition(header)
    return rest[:_BUILD_ID_BYTES] if found_header else None


def _read_notes(prog, address_of):
    """Return the kernel's ELF notes, or None if they are not found or their memory is missing.

    :param address_of: function of a symbol's name that returns its address.
    """
    try:
        start, stop = address_of("__start_notes"), address_of("__stop_notes")
        return prog.read(start, stop - start) if 0 < stop - start <= _MAX_NOTES_BYTES else None
    except (LookupError, FaultError):
        return None


def _use_symbols_of_vmlinux(prog):
    # The kernel's own symbol table, which was loaded for BTF, would be compared with itself.
    finders = [name for name in prog.enabled_symbol_finders() if name != "kallsyms"]
    prog.set_enabled_symbol_finders(finders)


def _differences(prog):
    """Return how the loaded vmlinux differs from the kernel, as a list of texts."""
    differences = build_check.symbol_differences(prog) + build_check.type_differences(prog, prog)
    build_id = prog.main_module().build_id
    notes = _read_notes(prog, lambda name: prog.symbol(name).address)
    if None not in (notes, build_id) and build_id not in notes:
        differences.append("build id %s is not in the kernel's notes" % build_id.hex())
    return differences


def _mismatch_error(path, source, build, differences):
    message = "%s is not the vmlinux of %s: %s; give %s" % (
        path,
        source,
        build_check.describe(differences),
        build.vmlinux,
    )
    return CollectError("mismatch", message)
