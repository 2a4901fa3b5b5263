"""Put programs of this machine into a guest: the collector with this Python and its drgn, only the files that an audit
opens here, or a program with its libraries."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import drgn

MEMORY_MB = 512
"""Additional memory of a guest: its 170 MB of files exist twice, in the initramfs and unpacked in half of the rest."""

_ROOT = Path(__file__).parents[2]
_CORE = _ROOT / "tests/vmcores/deb510-n1/vmcore"
_AUDIT = """
import random, runpy, sys  # python -m needs runpy, the sample of a live audit random
from pipeline.collector.__main__ import main
if main(sys.argv[1:]):
    sys.exit("the audit failed")
for module in list(sys.modules.values()):
    for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
        print(path, file=sys.stderr)
"""


def copy(root: Path) -> None:
    """Copy every file below `root` with its path on this machine, and write /bin/python there."""
    python = os.path.realpath(sys.executable)
    modules = audit_modules()
    extensions = [path for path in modules if path.endswith(".so")]
    copy_files(root, {python, *modules, *libraries([python, *extensions])})
    launcher = root / "bin/python"
    launcher.write_text(f"#!/bin/sh\nPYTHONPATH='{_ROOT}:{Path(drgn.__file__).parents[1]}' exec '{python}' \"$@\"\n")
    launcher.chmod(0o755)


def copy_program(root: Path, name: str) -> None:
    """Copy a program of this machine with its libraries below `root`."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    copy_files(root, {program, *libraries([program])})


def copy_files(root: Path, paths: Iterable[str]) -> None:
    """Copy files below `root`, each with its path on this machine."""
    for path in paths:
        copy_path = root / path.lstrip("/")
        copy_path.parent.mkdir(parents=True, exist_ok=True)
        # copy2() keeps the modification time: bytecode is valid only for its source's time.
        shutil.copy2(path, copy_path)


def audit_modules() -> list[str]:
    """The files (source, bytecode and extensions) of the Python modules that an audit of a core imports."""
    command = [sys.executable, "-c", _AUDIT, _CORE]
    process = subprocess.run(
        command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return [path for path in process.stderr.splitlines() if os.path.isfile(path)]


def libraries(objects: list[str]) -> list[str]:
    """The shared libraries and the loader that ELF files need, by the paths at which the loader looks for them."""
    ldd_output = subprocess.check_output(["ldd", *objects], text=True)
    return re.findall(r"(/\S+) \(0x", ldd_output)
