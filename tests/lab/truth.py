"""Readings of a full core by independent tools: the slow reference walks with drgn and DWARF, and the crash utility.

The kernel's own report comes from the guest (guest/init).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests import reference, reference_charges, reference_percpu
from tests.lab.kernels import Kernel
from tests.lab.reduce import FullCore


def write(core: Path, kernel: Kernel, folder: Path, run_references: bool = True) -> None:
    """Write reference.json, charges.json and percpu.json to `folder`, and crash.json if crash can open the core.

    :param run_references: write all but crash.json, which takes long for a large core.
    """
    assert kernel.vmlinux
    if run_references:
        prog = FullCore(core).program()
        prog.load_debug_info([kernel.vmlinux])
        (folder / "reference.json").write_text(reference.dumps(reference.read(prog)))
        (folder / "charges.json").write_text(reference.dumps(reference_charges.read(prog)))
        (folder / "percpu.json").write_text(reference.dumps(reference_percpu.read(prog)))
    crash_report = crash(core, kernel.vmlinux)
    if crash_report:
        (folder / "crash.json").write_text(json.dumps(crash_report, indent=1) + "\n")


def crash(core: Path, vmlinux: Path) -> dict[str, Any] | None:
    """crash's figures of a core as JSON values; None if crash is not installed or too old for the kernel.

    Version 8.0.2 opens 5.10 and 6.1, but not 6.12 and 7.2.
    """
    if shutil.which("crash") is None:
        return None
    commands = [
        "p memcg_nr_cache_ids",
        "list -H super_blocks",
        *(f"kmem -s {name}" for name in reference.CACHE_NAMES),
        "quit",
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".crash") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        command = ["crash", "-s", "-i", script.name, str(vmlinux), str(core)]
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    superblocks = re.findall(r"^[0-9a-f]{16}$", process.stdout, re.MULTILINE)
    if not superblocks:
        return None
    cache_ids = re.search(r"^memcg_nr_cache_ids = \$\d+ = (\d+)$", process.stdout, re.MULTILINE)
    rows = re.findall(r"^[0-9a-f]{16} +(\d+) +(\d+) +(\d+) +(\d+) +\d+k +(\S+)$", process.stdout, re.MULTILINE)
    keys = ("object_size", "allocated", "total", "slabs")
    return {
        "memcg_nr_cache_ids": int(cache_ids[1]) if cache_ids else None,
        "super_blocks": len(superblocks),
        "caches": {name: dict(zip(keys, map(int, values), strict=True)) for *values, name in rows},
    }
