"""What independent tools read from a full core: drgn with DWARF in the plainest way, and the crash utility.

The kernel's own account of itself comes from the guest (guest/init).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests import reference, reference_charges
from tests.lab.kernels import Kernel
from tests.lab.reduce import FullCore


def write(core: Path, built: Kernel, to: Path, walked: bool = True) -> None:
    """Write into the folder `to` reference.json and charges.json, if `walked`, and crash.json, if crash can open it."""
    assert built.vmlinux
    if walked:
        prog = FullCore(core).program()
        prog.load_debug_info([built.vmlinux])
        (to / "reference.json").write_text(reference.dumps(reference.read(prog)))
        (to / "charges.json").write_text(reference.dumps(reference_charges.read(prog)))
    by_crash = crash(core, built.vmlinux)
    if by_crash:
        (to / "crash.json").write_text(json.dumps(by_crash, indent=1) + "\n")


def crash(core: Path, vmlinux: Path) -> dict[str, Any] | None:
    """crash's account of a core as JSON values; None where it is missing or too old for this kernel.

    Version 8.0.2 opens 5.10 and 6.1, not 6.12 and 7.2.
    """
    if shutil.which("crash") is None:
        return None
    commands = [
        "p memcg_nr_cache_ids",
        "list -H super_blocks",
        *(f"kmem -s {name}" for name in reference.USAGE_OF),
        "quit",
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".crash") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        command = ["crash", "-s", "-i", script.name, str(vmlinux), str(core)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    superblocks = re.findall(r"^[0-9a-f]{16}$", done.stdout, re.MULTILINE)
    if not superblocks:
        return None
    cache_ids = re.search(r"^memcg_nr_cache_ids = \$\d+ = (\d+)$", done.stdout, re.MULTILINE)
    rows = re.findall(r"^[0-9a-f]{16} +(\d+) +(\d+) +(\d+) +(\d+) +\d+k +(\S+)$", done.stdout, re.MULTILINE)
    keys = ("object_size", "allocated", "total", "slabs")
    return {
        "memcg_nr_cache_ids": int(cache_ids[1]) if cache_ids else None,
        "super_blocks": len(superblocks),
        "caches": {name: dict(zip(keys, map(int, values), strict=True)) for *values, name in rows},
    }
