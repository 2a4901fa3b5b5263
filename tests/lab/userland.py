"""Puts the collector into a guest, with this Python and its drgn: just the files that an audit opens here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import drgn

MEMORY_MB = 512
"""What a guest needs in addition: 170 MB of files come twice, in the initramfs and unpacked into half of the rest."""

_ROOT = Path(__file__).parents[2]
_CORE = _ROOT / "tests/vmcores/deb510-n1/vmcore"
_AUDIT = """
import runpy, sys  # runpy is what -m needs
from pipeline.collector.__main__ import main
if main(sys.argv[1:]):
    sys.exit("the audit failed")
for module in list(sys.modules.values()):
    for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
        print(path, file=sys.stderr)
"""


def copy(root: Path) -> None:
    """Copy it below `root`, every file to the path that it has here, and make /bin/python there."""
    python = os.path.realpath(sys.executable)
    modules = modules_of_an_audit()
    extensions = [path for path in modules if path.endswith(".so")]
    for path in {python, *modules, *libraries([python, *extensions])}:
        to = root / path.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        # With its time: bytecode is valid for the time of its source.
        shutil.copy2(path, to)
    start = root / "bin/python"
    start.write_text(f"#!/bin/sh\nPYTHONPATH='{_ROOT}:{Path(drgn.__file__).parents[1]}' exec '{python}' \"$@\"\n")
    start.chmod(0o755)


def modules_of_an_audit() -> list[str]:
    """The files of the Python modules, source, bytecode and extensions, that an audit of a core imports."""
    command = [sys.executable, "-c", _AUDIT, _CORE]
    done = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return [path for path in done.stderr.splitlines() if os.path.isfile(path)]


def libraries(objects: list[str]) -> list[str]:
    """The shared libraries, and the loader, that ELF files need, under the names by which they are looked for."""
    linked = subprocess.check_output(["ldd", *objects], text=True)
    return re.findall(r"(/\S+) \(0x", linked)
