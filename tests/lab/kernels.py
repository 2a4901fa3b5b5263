"""Find, download and unpack the kernels that the lab boots, with this machine's apt and Debian mirror."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7": "forky"}
"""The Debian suite that has a kernel series, by series."""

FLAVOURS = {"cloud": "-cloud-{}", "generic": "-{}", "rt": "-rt-{}", "64k": "-{}-64k"}
"""End of the packages' names by flavour; the field is the kernel's name of the architecture."""
KERNEL_ARCHES = {"ppc64el": "powerpc64le"}
"""Name of an architecture in the names of kernel packages, where it differs from Debian's own."""

MAKEDUMPFILE_PACKAGES = (
    "makedumpfile", "libc6", "libdw1", "libdw1t64", "libelf1", "libelf1t64", "zlib1g", "liblzo2-2", "liblzma5",
    "libbz2-1.0", "libzstd1",
)  # fmt: skip
"""makedumpfile and its libraries; a suite has the names before or after Debian's change of time_t."""

BUSYBOX = Path("/bin/busybox")
"""This machine's static busybox, of the package busybox-static."""

CACHE = Path(__file__).parents[2] / ".cache" / "lab"
"""Default folder for downloads, unpacked kernels and disks of guests."""


class LabError(Exception):
    """An error of the lab; the message is one line with the remedy."""


class NotFetchedError(LabError):
    """A mirror lists a package and does not have its file, for example because it is being updated."""


@dataclass(frozen=True)
class Kernel:
    """A kernel unpacked on this machine."""

    release: str
    vmlinuz: Path
    modules: Path
    """Folder with every module, at any depth."""
    busybox: Path
    """A static busybox for the kernel's architecture."""
    vmlinux: Path | None
    """The file with DWARF, from the -dbg package; None if it was not requested."""
    system_map: Path | None
    """The System.map of the -dbg package; None if it was not requested."""


class Packages(Protocol):
    """A source of .deb files."""

    arch: str
    """Debian's name of the packages' architecture."""
    remedy: str
    """Advice for an error about a missing package."""

    def versions(self) -> dict[str, str]:
        """The newest version of each package, by package name."""

    def deb(self, name: str) -> Path:
        """The package's .deb file on this machine."""


@functools.cache
def debian_kernel(series: str, arch: str = "amd64", dwarf: bool = False, flavour: str = "cloud") -> Kernel:
    """The newest kernel of a series, from $LAB_DEBS or the mirror, unpacked in CACHE; `dwarf` as in get()."""
    debs = os.environ.get("LAB_DEBS")
    with lock(CACHE, f"{SUITES[series]}-{arch}"):
        return get(series, source(series, arch, Path(debs) if debs else None, CACHE, flavour), CACHE, dwarf, flavour)


@functools.cache
def makedumpfile(series: str, arch: str) -> Path:
    """Folder with makedumpfile, and its libraries, of the suite that has a series, unpacked in CACHE.

    An older one leaves out pages that are in use: on 6.12, 1.7.2 takes pages of slab caches for pages of processes.
    """
    with lock(CACHE, f"{SUITES[series]}-{arch}"):
        packages = mirror(SUITES[series], arch, CACHE)
        root = CACHE / "tools" / f"{SUITES[series]}-{arch}"
        for name in MAKEDUMPFILE_PACKAGES:
            if name in packages.versions():
                unpack(packages, name, root)
    return root


@contextlib.contextmanager
def lock(cache: Path, part: str) -> Iterator[None]:
    """Wait until no other process fills a part of `cache`, and make others wait until the end of the `with` block.

    :param part: SUITE-ARCH of packages, or the name of a disk.
    """
    locks = cache / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / part).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def get(series: str, packages: Packages, cache: Path, dwarf: bool, flavour: str = "cloud") -> Kernel:
    """The newest kernel of a series whose packages can be fetched, unpacked below `cache`.

    :param flavour: a key of FLAVOURS.
    :param dwarf: also unpack the vmlinux and the System.map of the -dbg package (300 MB to download, 600 MB on disk).
    """
    versions = packages.versions()
    name = f"linux-image-{series}.*{suffix(packages.arch, flavour)}"
    error = LabError(f"no {name} in {packages}; {packages.remedy}")
    while release := newest(series, packages.arch, versions, flavour):
        try:
            return get_release(release, packages, cache, dwarf)
        except NotFetchedError as e:
            error = e
            versions = {name: version for name, version in versions.items() if name != f"linux-image-{release}"}
    raise error


def get_release(release: str, packages: Packages, cache: Path, dwarf: bool) -> Kernel:
    """The kernel of a release, unpacked below `cache`; `dwarf` as in get().

    :raises NotFetchedError: the mirror does not have one of its packages.
    """
    versions = packages.versions()
    # Since 7.x the package linux-image is empty; it depends on the packages with the files.
    names = [f"linux-{part}-{release}" for part in ("image", "binary", "modules")]
    names = [name for name in names if name in versions]
    root = cache / "kernels" / release
    for name in names:
        unpack(packages, name, root)
    if dwarf:
        unpack(packages, f"linux-image-{release}-dbg", root, exclude="*.ko*")
    busybox = BUSYBOX
    if packages.arch != own_arch():
        unpack(packages, "busybox-static", root)
        busybox = first_existing(root / "bin/busybox", root / "usr/bin/busybox")
    debug = root / "usr/lib/debug"
    return Kernel(
        release=release,
        vmlinuz=first_existing(
            root / f"boot/vmlinuz-{release}",
            root / f"boot/vmlinux-{release}",  # ppc64el
            root / f"usr/lib/modules/{release}/vmlinuz",
        ),
        modules=first_existing(root / "lib/modules", root / "usr/lib/modules"),
        busybox=busybox,
        vmlinux=first_existing(debug / f"boot/vmlinux-{release}", debug / f"lib/modules/{release}/vmlinux")
        if dwarf
        else None,
        system_map=first_existing(debug / f"boot/System.map-{release}", debug / f"lib/modules/{release}/System.map")
        if dwarf
        else None,
    )


def source(series: str, arch: str, debs: Path | None, cache: Path, flavour: str = "cloud") -> Packages:
    """The source of a series' kernel: the folder `debs` if it has one, else the mirror."""
    folder = Folder(debs, arch) if debs else None
    if folder and newest(series, arch, folder.versions(), flavour):
        return folder
    return mirror(SUITES[series], arch, cache)


def own_arch() -> str:
    """Debian's name of this machine's architecture."""
    return subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()


def suffix(arch: str, flavour: str) -> str:
    """End of the release, and of the packages' names, of a flavour's kernels."""
    return FLAVOURS[flavour].format(KERNEL_ARCHES.get(arch, arch))


def newest(series: str, arch: str, versions: dict[str, str], flavour: str = "cloud") -> str | None:
    """Release of the newest kernel of a series in a set of packages, or None; `versions` as of Packages."""
    # 5.10.0-32 or 6.12.117+deb13, without the name of another flavour.
    pattern = re.compile(rf"linux-image-({re.escape(series)}\.[^-]+(?:-\d+)?{re.escape(suffix(arch, flavour))})")
    releases = [
        (version_key(version), match[1]) for name, version in versions.items() if (match := pattern.fullmatch(name))
    ]
    return max(releases)[1] if releases else None


def first_existing(*paths: Path) -> Path:
    """The first path that exists. A file's path in Debian's packages depends on the release."""
    for path in paths:
        if path.exists():
            return path
    raise LabError(f"the packages have none of {', '.join(map(str, paths))}; add the file's new path to the lab")


def unpack(packages: Packages, name: str, root: Path, exclude: str | None = None) -> None:
    """Unpack a package below `root`, once: a stamp file in `root` marks it as unpacked.

    :param exclude: glob of members to leave out.
    """
    stamp = root / f".{name}"
    if stamp.exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", packages.deb(name)], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["tar", "-x", "-C", root, *([f"--exclude={exclude}"] if exclude else [])], stdin=tar.stdout, check=True
        )
    if tar.returncode:
        raise LabError(f"dpkg-deb cannot unpack {name}; remove its .deb and try again")
    stamp.touch()


def version_key(version: str) -> list[int]:
    """Sort key of a Debian kernel version: its numbers in order."""
    return [int(number) for number in re.findall(r"\d+", version)]


class Folder:
    """Packages from a folder of .deb files, for a suite that is no longer on the mirror."""

    remedy = "add its .deb file to that folder"

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder = folder
        self.arch = arch
        self.files: dict[str, tuple[str, Path]] = {}
        for deb in sorted(folder.glob("*.deb")):
            show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}", str(deb)]
            name, version, deb_arch = subprocess.check_output(show, text=True).split()
            if deb_arch != arch:
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
    """Packages of a suite, from the Debian mirror in this machine's apt sources.

    apt does the work (signatures, checksums, resumed downloads, proxies) in separate folders below `cache`, so the
    machine's own lists and sources do not change.
    """

    remedy = "if the suite is no longer on the mirror, pass a folder with its .deb files to --debs"

    def __init__(self, suite: str, arch: str, cache: Path) -> None:
        cache = cache.resolve()
        self.suite = suite
        self.arch = arch
        self.apt = cache / "apt" / f"{suite}-{arch}"
        self.debs = self.apt / "debs"
        for folder in (self.debs, self.apt / "lists/partial", self.apt / "cache/archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        sources = self.apt / "sources.list"
        sources.write_text(f"deb [arch={arch}] {debian_uri()} {suite} main\n")
        self.options = [
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=-",
            f"-oDir::State::Lists={self.apt / 'lists'}",
            "-oDir::State::status=/dev/null",  # this machine's packages are not the suite's
            f"-oDir::Cache={self.apt / 'cache'}",
            f"-oAPT::Architecture={arch}",
            "-oAcquire::Languages=none",
            "-oAPT::Sandbox::User=",
            "-qq",
        ]
        self._run("apt-get", "update", "-oAPT::Update::Error-Mode=any")
        kernel = re.compile(rf"linux-(?:image|binary|modules)-\d.*-{KERNEL_ARCHES.get(arch, arch)}(?:-64k)?(?:-dbg)?")
        names = [name for name in self._run("apt-cache", "pkgnames", "linux-").split() if kernel.fullmatch(name)]
        names += ["busybox-static", *MAKEDUMPFILE_PACKAGES]
        self.version_by_name: dict[str, str] = {}
        for line in self._run("apt-cache", "madison", *names).splitlines():
            name, version, _ = (field.strip() for field in line.split("|"))
            self.version_by_name[name] = max(version, self.version_by_name.get(name, ""), key=version_key)

    def __str__(self) -> str:
        return self.suite

    def versions(self) -> dict[str, str]:
        return self.version_by_name

    def deb(self, name: str) -> Path:
        try:
            self._run("apt-get", "download", name)
        except LabError as e:
            raise NotFetchedError(str(e)) from e
        version = self.version_by_name[name].replace(":", "%3a")
        return first_existing(*(self.debs / f"{name}_{version}_{arch}.deb" for arch in (self.arch, "all")))

    def _run(self, tool: str, *arguments: str) -> str:
        process = subprocess.run([tool, *self.options, *arguments], cwd=self.debs, capture_output=True, text=True)
        if process.returncode:
            reason = " ".join(process.stderr.split())
            raise LabError(f"{tool} {arguments[0]} failed for {self}: {reason}; {self.remedy}")
        return process.stdout


@functools.cache
def mirror(suite: str, arch: str, cache: Path) -> Mirror:
    """The packages of a suite, listed once: apt fetches the lists again for each Mirror."""
    return Mirror(suite, arch, cache)


def debian_uri(etc: Path = Path("/etc/apt")) -> str:
    """URI of the Debian mirror in this machine's apt sources: the first URI whose path ends in /debian."""
    lists = [
        etc / "sources.list",
        *sorted(etc.glob("sources.list.d/*.list")),
        *sorted(etc.glob("sources.list.d/*.sources")),
    ]
    for file in filter(Path.exists, lists):
        match = re.search(
            r"^(?:deb|URIs:)\s(?:[^#\n]*\s)?([a-z+]+:/\S*/debian/?)(?:\s|$)", file.read_text(), re.MULTILINE
        )
        if match:
            return match[1]
    raise LabError(f"no Debian mirror in the apt sources in {etc}; {Mirror.remedy}")
