"""What a transport returns."""

from __future__ import annotations

import sys
from typing import NamedTuple

from pipeline.inventory import Target


class TargetError(ValueError):
    """A target that no command can be made of; one line."""


class Command(NamedTuple):
    """argv: the child's arguments. stdin: what it reads, None for nothing. opens: a file that has to be there.
    host: what an error has to name, where that is not this node."""

    argv: list[str]
    stdin: bytes | None = None
    opens: str | None = None
    host: str | None = None


def collector(target: Target) -> list[str]:
    """Return the argv of a collector on the node itself."""
    return [target.python or sys.executable, "-m", "pipeline.collector", *arguments(target)]


def arguments(target: Target) -> list[str]:
    """Return the collector's arguments; files are those of the machine that it runs on."""
    argv: list[str] = []
    if target.vmlinux is not None:
        argv += ["--vmlinux", target.vmlinux]
    if target.debug_dir is not None:
        argv += ["--debug-dir", target.debug_dir]
    if target.btf_dir is not None:
        argv += ["--btf-dir", target.btf_dir]
    if target.vmcoreinfo is not None:
        argv += ["--vmcoreinfo", target.vmcoreinfo]
    if target.charged is not None:
        argv.append("--charged" if target.charged else "--no-charged")
    if target.target_layout is not None:
        argv += ["--target-layout", target.target_layout]
    if target.verify:
        argv.append("--verify")
    if target.max_reads is not None:
        argv += ["--max-reads", str(target.max_reads)]
    return [*argv, f"qmp:{target.source}" if target.kind == "qmp" else target.source]
