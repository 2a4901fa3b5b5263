"""Fills the directory of drgn's wheels that are sent to hosts, with pip and what it is configured to download from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_OLDEST_DRGN = "0.0.31"
_GLIBC_MINORS = range(17, 46)  # RHEL 7's to any in use; of two builds of one drgn pip takes the first that fits


def fetch(folder: Path, pythons: Iterable[str], arches: Sequence[str], say: Callable[[str], None]) -> bool:
    """Download the newest drgn that is there as a wheel for each Python and architecture.

    :return: whether there was one for each.
    """
    missing = [(python, arch) for python in pythons for arch in arches if not _download(folder, python, arch)]
    for python, arch in missing:
        say(f"no wheel of drgn {_OLDEST_DRGN} or newer for Python {python} on {arch}")
    return not missing


def _download(folder: Path, python: str, arch: str) -> bool:
    platforms = [f"manylinux2014_{arch}", *(f"manylinux_2_{minor}_{arch}" for minor in _GLIBC_MINORS)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--no-deps", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--dest={folder}", f"drgn>={_OLDEST_DRGN}"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
