"""The drgn wheel that fits a host, in the form that collector/remote.py reads."""

import os
import re
import struct

from .failures import SessionError

OLDEST_DRGN = "0.0.31"

# The line of collector/remote.py with Python's version, extension suffix, architecture and C library.
_HOST_LINE = re.compile(
    rb"\nlist-lru-audit host (\d\.\d{1,3}) ([!-~]{1,99}) (\w{1,20}) (\w{1,20} \d{1,3}\.\d{1,3})[\d.]*\n"
)
_WHEEL = re.compile(r"drgn-([\d.]+)-(\w+)-(\w+)-([\w.]+)\.whl")
# Old platform tags and their names since PEP 600.
_ALIASES = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
# In the local file header of a zip member: the lengths of its name and extra field. Both and the data follow.
_ZIP_LENGTHS_OFFSET = 26


def asking_host(output: bytes) -> tuple[str, ...] | None:
    """Return the last arguments of `load` for the host that asks for drgn in this output, or None."""
    match = _HOST_LINE.search(output)
    return None if match is None else tuple(word.decode() for word in match.groups())


def load(directory: str, python: str, suffix: str, arch: str, libc: str) -> bytes:
    """Return the newest drgn wheel that fits a host, in the form that collector/remote.py reads.

    :param suffix: of the interpreter's extension modules, such as ``.cpython-311-x86_64-linux-gnu.so``.
    :param libc: name and version of the C library, such as ``glibc 2.31``.
    :raises SessionError: no wheel fits, or it cannot be read.
    """
    import zipfile  # seldom needed; zipfile and random would take a third of this program's start

    tag = "cp" + python.replace(".", "")
    abi = "cp" + suffix.split("-")[1] if suffix.startswith(".cpython-") else ""
    candidates = []
    try:
        for name in os.listdir(directory):
            match = _WHEEL.fullmatch(name)
            if match and tag in match[2].split(".") and match[3] == abi and _is_compatible(match[4], arch, libc):
                candidates.append((_release(match[1]), name))
        if candidates and max(candidates)[0] >= _release(OLDEST_DRGN):
            return _wheel_contents(os.path.join(directory, max(candidates)[1]))
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:  # of a damaged file
        text = f"the host has no drgn, and no wheel can be read from {directory}: {error}"
        raise SessionError("no_drgn", type(error).__name__, text) from error
    raise SessionError(
        "no_drgn",
        "NoWheel",
        f"the host has no drgn, and no wheel in {directory} fits Python {python} on {arch} with {libc}; "
        f"run lru-audit fetch-drgn --python {python} --arch {arch}, or install drgn {OLDEST_DRGN} or newer on the host",
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _is_compatible(platforms: str, arch: str, libc: str) -> bool:
    """Whether a wheel with these platform tags (joined by dots) runs with a C library such as ``glibc 2.31``."""
    name, _, version = libc.partition(" ")
    for platform in platforms.split("."):
        for legacy, modern in _ALIASES.items():
            platform = platform.replace(f"{legacy}_", f"{modern}_")
        match = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", platform)
        if name == "glibc" and match and match[3] == arch:
            libc_version = _release(version)
            if (int(match[1]), int(match[2])) <= libc_version:
                return True
    return False


def _wheel_contents(path: str) -> bytes:
    """Return a line that lists a wheel's members, then their data, still compressed."""
    import zipfile

    members, data = [], []
    size_bytes = os.path.getsize(path)
    with zipfile.ZipFile(path) as wheel, open(path, "rb") as file:
        for entry in wheel.infolist():
            if entry.filename.endswith(".py") or ".so" in entry.filename:
                file.seek(entry.header_offset + _ZIP_LENGTHS_OFFSET)
                file.seek(sum(struct.unpack("<2H", file.read(4))), os.SEEK_CUR)
                if file.tell() + entry.compress_size > size_bytes:
                    raise zipfile.BadZipFile(f"{entry.filename} is cut off")
                data.append(file.read(entry.compress_size))
                members.append((entry.filename, entry.compress_size, entry.compress_type == zipfile.ZIP_DEFLATED))
    return repr(members).encode() + b"\n" + b"".join(data)
