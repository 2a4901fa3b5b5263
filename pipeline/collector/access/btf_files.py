"""The bytes of a kernel's BTF: its own, or those of a file that fits it."""

import contextlib
import lzma
import os
import re
import tarfile

from drgn import FaultError, FindObjectFlags, Program

from .. import formats
from ..status import CollectError
from . import build_check
from .btf import Btf
from .memory import is_own

_SYMBOLS = (
    ("__start_BTF", "__stop_BTF"),
    # Before commit 90ceddcb4950 ("bpf: Support llvm-objcopy for vmlinux BTF") (in v5.7), since commit 341dfcf8d78e
    # ("btf: expose BTF info through sysfs") (in v5.4).
    ("_binary__btf_vmlinux_bin_start", "_binary__btf_vmlinux_bin_end"),
)
# What reading a damaged file raises. MemoryError: xz's header asks for up to 4 GiB.
_FILE_ERRORS = (
    *(OSError, KeyError, EOFError, ValueError, RecursionError, MemoryError),
    *(tarfile.TarError, lzma.LZMAError),
)
# Limit of a kernel's BTF: distributions' have 3 to 10 MB.
_MAX_BTF_BYTES = 64 << 20


def read_own(prog):
    """Return the BTF of the kernel itself, or None."""
    if is_own(prog):
        # Where a container hides it, it is read from memory.
        with contextlib.suppress(OSError):
            with open("/sys/kernel/btf/vmlinux", "rb") as f:
                blob = f.read()
            if blob:
                return blob
    for start_name, stop_name in _SYMBOLS:
        try:
            start, stop = prog.symbol(start_name).address, prog.symbol(stop_name).address
            if 0 < stop - start <= _MAX_BTF_BYTES:
                return prog.read(start, stop - start)
        except (LookupError, FaultError):
            continue
    return None


def read_from_dir(prog, source, btf_dir):
    """Return the BTF below a directory that fits the kernel, or None if no file has its release and architecture.

    The file is RELEASE.btf or RELEASE.btf.tar.xz. Of several that fit, the one is taken whose directories name the
    kernel's distribution, as in BTFHub-archive's layout.

    :raises CollectError: ``mismatch``: no file fits, or two that fit differ; ``no_types``: a file cannot be read.
    """
    build = build_check.read_build(prog)
    blobs, misfits = {}, []
    for path in _paths(prog, btf_dir, build.release):
        try:
            blob = _read_file(path, build.release)
            differences = build_check.type_differences(prog, _types_only(prog.platform, blob))
        except _FILE_ERRORS as e:
            misfits.append(CollectError("no_types", "%s: %s" % (path, e), type(e).__name__))
            continue
        if differences:
            text = "%s is not the BTF of %s: %s; give %s instead"
            message = text % (path, source, build_check.describe(differences), build.vmlinux)
            misfits.append(CollectError("mismatch", message))
        else:
            blobs[path] = blob
    if not blobs:
        if misfits:
            raise misfits[0]
        return None
    return blobs[_best_path(blobs, btf_dir, build, source)]


def _paths(prog, btf_dir, release):
    """Yield the paths of the BTF files of a release for the kernel's architecture."""
    arch = {"X86_64": "x86_64", "AARCH64": "arm64"}.get(prog.platform.arch.name, prog.platform.arch.name.lower())
    for directory, _, files in os.walk(btf_dir):
        # In BTFHub-archive's layout a parent directory names the architecture; a flat directory has no such parent.
        parts = directory.split(os.sep)
        if any(name in parts and name != arch for name in ("x86_64", "arm64")):
            continue
        for name in (release + ".btf", release + ".btf.tar.xz"):
            if name in files:
                yield os.path.join(directory, name)


def _read_file(path, release):
    if not path.endswith(".tar.xz"):
        with formats.open_file(path) as f:
            return f.read(_MAX_BTF_BYTES)
    with formats.open_file(path) as f, tarfile.open(fileobj=f) as archive:
        member = archive.extractfile(release + ".btf")
        if member is None:
            raise KeyError("%s.btf is not a file" % release)
        return member.read(_MAX_BTF_BYTES)


def _types_only(platform, blob):
    """Return a program that has the types and enumerators of a BTF, but no memory."""
    types = Program(platform)
    btf = Btf(types, blob)

    def find_object(_, name, flags, filename):
        return btf.find_constant(name) if flags & FindObjectFlags.CONSTANT else None

    types.register_type_finder("btf", btf.find_type, enable_index=0)
    types.register_object_finder("btf", find_object, enable_index=0)
    return types


def _best_path(blobs, btf_dir, build, source):
    """Return the path whose directories say most of the kernel's distribution.

    :param blobs: dict of path to BTF, at least one.
    :raises CollectError: ``mismatch``: files that say the same differ.
    """
    scores = {path: _score(os.path.relpath(path, btf_dir), build) for path in blobs}
    paths = [path for path in sorted(blobs) if scores[path] == max(scores.values())]
    for path in paths[1:]:
        if blobs[path] != blobs[paths[0]]:
            message = "%s and %s both fit %s and differ; keep the one of its distribution" % (paths[0], path, source)
            raise CollectError("mismatch", message)
    return paths[0]


def _score(path, build):
    """Return the number of a path's directories that the release or the version has, such as ubuntu or 18.04."""
    text = ("%s %s" % (build.release, build.version)).lower()
    names = [name for name in os.path.dirname(path).lower().split(os.sep) if re.search(r"[a-z]|\d\.\d", name)]
    return sum(bool(re.search(r"(?<![a-z0-9.])%s(?![a-z])" % re.escape(name), text)) for name in names)
