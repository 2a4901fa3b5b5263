"""Download of the drgn wheels that are sent to hosts, with pip and the package index that pip is configured for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.fanout.transports.session.drgn_wheels import OLDEST_DRGN

# Minor versions of glibc 2, from RHEL 7's to beyond any in use. If several wheels of a drgn release fit, pip takes the
# one whose platform comes first.
_GLIBC_MINORS = range(17, 46)


def fetch(directory: Path, pythons: Iterable[str], arches: Sequence[str], warn: Callable[[str], None]) -> bool:
    """Download the newest drgn wheel for each Python and architecture into a directory.

    :param warn: receives one line for each combination without a wheel.
    :return: whether every combination has a wheel.
    """
    missing = [(python, arch) for python in pythons for arch in arches if not _download(directory, python, arch)]
    for python, arch in missing:
        warn(f"no wheel of drgn {OLDEST_DRGN} or newer for Python {python} on {arch}")
    return not missing


def has(directory: Path, python: str, arch: str) -> bool:
    """Whether a directory has a drgn wheel for a Python and an architecture."""
    tag = "cp" + python.replace(".", "")
    return any(directory.glob(f"drgn-*-{tag}-{tag}*_{arch}.whl"))


def _download(directory: Path, python: str, arch: str) -> bool:
    platforms = [f"manylinux2014_{arch}", *(f"manylinux_2_{minor}_{arch}" for minor in _GLIBC_MINORS)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--no-deps", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--dest={directory}", f"drgn>={OLDEST_DRGN}"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
