"""The command that a transport returns, and the collector's arguments."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from pipeline.inventory import Target


class TargetError(ValueError):
    """No command can be built for a target; the message is one line."""


class Command(NamedTuple):
    """The command of a child process.

    :param args: the arguments of the collector, or of `program`.
    :param program: a program and its first arguments, to run instead of the collector of this package in this Python.
    :param stdin: the bytes that the child reads, or None for /dev/null.
    :param required_file: a file that must exist and be readable before the child starts.
    :param host: the remote host, named in front of each error; None for a child that audits from this node.
    """

    args: list[str]
    program: list[str] | None = None
    stdin: bytes | None = None
    required_file: str | None = None
    host: str | None = None


def collector(target: Target, required_file: str | None = None) -> Command:
    """Return the command of a collector on this node."""
    program = [*shlex.split(target.python), "-m", "pipeline.collector"] if target.python else None
    return Command(arguments(target), program, required_file=required_file)


def arguments(target: Target) -> list[str]:
    """Return the collector's arguments; paths are those of the machine that it runs on."""
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
    if target.target_kernel is not None:
        argv += ["--target-kernel", target.target_kernel]
    if target.target_layout is not None:
        argv += ["--target-layout", target.target_layout]
    if target.verify:
        argv.append("--verify")
    if target.max_reads is not None:
        argv += ["--max-reads", str(target.max_reads)]
    return [*argv, f"qmp:{target.source}" if target.kind == "qmp" else target.source]
