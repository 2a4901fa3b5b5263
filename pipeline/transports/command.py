"""What a transport returns."""

from __future__ import annotations

import sys
from typing import NamedTuple

from pipeline.inventory import Target


class Command(NamedTuple):
    """argv: the child's arguments. stdin: what it reads, None for nothing. opens: a file that has to be there."""

    argv: list[str]
    stdin: bytes | None = None
    opens: str | None = None


def collector(target: Target) -> list[str]:
    """Return the argv of a collector on the node itself."""
    argv = [target.python or sys.executable, "-m", "pipeline.collector"]
    if target.vmlinux is not None:
        argv += ["--vmlinux", target.vmlinux]
    if target.debug_dir is not None:
        argv += ["--debug-dir", target.debug_dir]
    if target.btf_dir is not None:
        argv += ["--btf-dir", target.btf_dir]
    if target.charged is not None:
        argv.append("--charged" if target.charged else "--no-charged")
    if target.target_layout is not None:
        argv += ["--target-layout", target.target_layout]
    if target.verify:
        argv.append("--verify")
    return [*argv, target.source]
