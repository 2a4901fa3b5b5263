"""Finds, downloads and unpacks the kernels that the lab boots, through the machine's own apt and mirror."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7": "forky"}
"""Kernel series to the Debian suite that carries it."""

BUSYBOX = Path("/bin/busybox")
"""The machine's own, of busybox-static."""


CACHE = Path(__file__).parents[2] / ".cache" / "lab"
"""Downloads, unpacked kernels and disks of guests, unless said otherwise."""


class LabError(Exception):
    """The lab cannot go on; the message is one line with the remedy."""


@dataclass(frozen=True)
class Kernel:
    """A kernel unpacked on this machine."""

    release: str
    vmlinuz: Path
    modules: Path
    """Folder that holds every module, at any depth."""
    busybox: Path
    """A static one that runs on it."""
    vmlinux: Path | None
    """The DWARF of the -dbg package, where it was asked for."""
    system_map: Path | None
    """The symbols of the -dbg package, likewise."""


class Packages(Protocol):
    """Where .deb files come from."""

    arch: str
    """Debian's name of their architecture."""
    remedy: str
    """What to do when a package is not there."""

    def versions(self) -> dict[str, str]:
        """Version by package name, the newest where there are several."""

    def deb(self, name: str) -> Path:
        """The package's file on this machine."""


def of(series: str, arch: str = "amd64", dwarf: bool = False) -> Kernel:
    """The newest cloud kernel of a series, from $LAB_DEBS or the mirror, unpacked in CACHE; `dwarf` as in get()."""
    CACHE.mkdir(parents=True, exist_ok=True)
    debs = os.environ.get("LAB_DEBS")
    return get(series, source(series, arch, Path(debs) if debs else None, CACHE), CACHE, dwarf)


def get(series: str, packages: Packages, cache: Path, dwarf: bool) -> Kernel:
    """The newest cloud kernel of a series, unpacked below `cache`.

    :param dwarf: also unpack the vmlinux and the System.map of the -dbg package (300 MB to download, 600 MB on disk).
    """
    versions = packages.versions()
    release = newest(series, packages.arch, versions)
    if release is None:
        raise LabError(f"no linux-image-{series}.*-cloud-{packages.arch} in {packages}; {packages.remedy}")
    # From 7.x on linux-image is empty and depends on the packages that hold the files.
    names = [f"linux-{part}-{release}" for part in ("image", "binary", "modules")]
    names = [name for name in names if name in versions]
    root = cache / "kernels" / release
    for name in names:
        unpack(packages, name, root)
    if dwarf:
        unpack(packages, f"linux-image-{release}-dbg", root, without="*.ko*")
    busybox = BUSYBOX
    if packages.arch != own_arch():
        unpack(packages, "busybox-static", root)
        busybox = first(root / "bin/busybox", root / "usr/bin/busybox")
    debug = root / "usr/lib/debug"
    return Kernel(
        release=release,
        vmlinuz=first(root / f"boot/vmlinuz-{release}", root / f"usr/lib/modules/{release}/vmlinuz"),
        modules=first(root / "lib/modules", root / "usr/lib/modules"),
        busybox=busybox,
        vmlinux=first(debug / f"boot/vmlinux-{release}", debug / f"lib/modules/{release}/vmlinux") if dwarf else None,
        system_map=first(debug / f"boot/System.map-{release}", debug / f"lib/modules/{release}/System.map")
        if dwarf
        else None,
    )


def source(series: str, arch: str, debs: Path | None, cache: Path) -> Packages:
    """Where to take the kernel of a series from: the folder `debs` where it holds one, else the mirror."""
    folder = Folder(debs, arch) if debs else None
    return folder if folder and newest(series, arch, folder.versions()) else Mirror(SUITES[series], arch, cache)


def own_arch() -> str:
    """Debian's name of this machine's architecture."""
    return subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()


def newest(series: str, arch: str, versions: dict[str, str]) -> str | None:
    """Release of the newest cloud kernel of a series among packages."""
    pattern = re.compile(rf"linux-image-({re.escape(series)}\..*-cloud-{arch})")
    found = [
        (version_key(version), match[1]) for name, version in versions.items() if (match := pattern.fullmatch(name))
    ]
    return max(found)[1] if found else None


def first(*places: Path) -> Path:
    """The first place that exists: where Debian's packages hold a file depends on the release."""
    for place in places:
        if place.exists():
            return place
    raise LabError(f"the packages hold none of {', '.join(map(str, places))}; the lab must learn the new place")


def unpack(packages: Packages, name: str, root: Path, without: str | None = None) -> None:
    """Unpack a package, without members that match a glob, below `root`; a stamp there says that it is done."""
    stamp = root / f".{name}"
    if stamp.exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", packages.deb(name)], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["tar", "-x", "-C", root, *([f"--exclude={without}"] if without else [])], stdin=tar.stdout, check=True
        )
    if tar.returncode:
        raise LabError(f"dpkg-deb cannot unpack {name}; remove its .deb and try again")
    stamp.touch()


def version_key(version: str) -> list[int]:
    """Sort key of a Debian kernel version: its numbers in order."""
    return [int(number) for number in re.findall(r"\d+", version)]


class Folder:
    """Packages from a folder of .deb files: stands in when a suite has left the mirror."""

    remedy = "add its .deb file to that folder"

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder = folder
        self.arch = arch
        self.files: dict[str, tuple[str, Path]] = {}
        for deb in sorted(folder.glob("*.deb")):
            show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}", str(deb)]
            name, version, its_arch = subprocess.check_output(show, text=True).split()
            if its_arch != arch:
                continue
            if name not in self.files or version_key(version) > version_key(self.files[name][0]):
                self.files[name] = version, deb

    def __str__(self) -> str:
        return str(self.folder)

    def versions(self) -> dict[str, str]:
        return {name: version for name, (version, _) in self.files.items()}

    def deb(self, name: str) -> Path:
        if name not in self.files:
            raise LabError(f"no package {name} in {self}; {self.remedy}")
        return self.files[name][1]


class Mirror:
    """Packages of one suite, from the mirror that this machine's own apt sources name.

    apt does the work (signatures, checksums, resuming, proxies) in folders of its own below `cache`: the machine's
    lists and sources stay as they are.
    """

    remedy = "if the suite has left the mirror, give a folder of its .deb files by --debs"

    def __init__(self, suite: str, arch: str, cache: Path) -> None:
        cache = cache.resolve()
        self.suite = suite
        self.arch = arch
        self.debs = cache / "debs"
        self.apt = cache / "apt" / f"{suite}-{arch}"
        for folder in (self.debs, self.apt / "lists/partial", self.apt / "cache/archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        sources = self.apt / "sources.list"
        sources.write_text(f"deb [arch={arch}] {debian_uri()} {suite} main\n")
        self.options = [
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=-",
            f"-oDir::State::Lists={self.apt / 'lists'}",
            f"-oDir::Cache={self.apt / 'cache'}",
            f"-oAPT::Architecture={arch}",
            "-oAcquire::Languages=none",
            "-oAPT::Sandbox::User=",
            "-qq",
        ]
        self._run("apt-get", "update", "-oAPT::Update::Error-Mode=any")
        names = [name for name in self._run("apt-cache", "pkgnames", "linux-").split() if f"-cloud-{arch}" in name]
        names.append("busybox-static")
        self.listed: dict[str, str] = {}
        for line in self._run("apt-cache", "madison", *names).splitlines():
            name, version, _ = (field.strip() for field in line.split("|"))
            self.listed[name] = max(version, self.listed.get(name, ""), key=version_key)

    def __str__(self) -> str:
        return self.suite

    def versions(self) -> dict[str, str]:
        return self.listed

    def deb(self, name: str) -> Path:
        self._run("apt-get", "download", name)
        [deb] = self.debs.glob(f"{name}_{self.listed[name].replace(':', '%3a')}_*.deb")
        return deb

    def _run(self, tool: str, *arguments: str) -> str:
        done = subprocess.run([tool, *self.options, *arguments], cwd=self.debs, capture_output=True, text=True)
        if done.returncode:
            reason = " ".join(done.stderr.split())
            raise LabError(f"{tool} {arguments[0]} of {self}: {reason}; {self.remedy}")
        return done.stdout


def debian_uri(etc: Path = Path("/etc/apt")) -> str:
    """URI of the Debian mirror in this machine's apt sources: the first whose path ends in /debian."""
    lists = [
        etc / "sources.list",
        *sorted(etc.glob("sources.list.d/*.list")),
        *sorted(etc.glob("sources.list.d/*.sources")),
    ]
    for file in filter(Path.exists, lists):
        found = re.search(
            r"^(?:deb|URIs:)\s(?:[^#\n]*\s)?([a-z+]+:/\S*/debian/?)(?:\s|$)", file.read_text(), re.MULTILINE
        )
        if found:
            return found[1]
    raise LabError(f"no source in {etc} names a Debian mirror; {Mirror.remedy}")
