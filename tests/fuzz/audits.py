"""Whole audits of damaged memory, each in a child of its own that has opened the core already, as collectors have.

The child runs the collector's main() and is interpreted as the runner interprets a collector: what comes back is the
attempt that a run would store.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from pipeline.collector import __main__ as collector
from pipeline.collector import budget
from pipeline.collector.access import kernel
from pipeline.fanout.runner import child
from pipeline.fanout.runner.child import Limits
from pipeline.fanout.transports import Command

CPU_S = 40
"""Limit of a child's CPU time, a hundred times what the audit of a bundled core takes."""
_OUT_OF_TIME = "did not end"


@dataclass
class Audit:
    """How an audit ended.

    :ivar status: one of `pipeline.collector.status.STATUSES`.
    :ivar defect: what no audit may do, whatever the memory holds: not end, or raise what nothing catches.
    :ivar tables: rows by table with the column names, of a good audit.
    """

    status: str
    error: str | None
    defect: str | None
    cpu_s: float
    peak_rss_bytes: int
    columns: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def rows(self, table: str) -> list[dict[str, Any]]:
        if table == "targets":
            return [self.columns]
        content = self.tables[table]
        return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def audit(path: Path, opened: kernel.Kernel | None, damage: Callable[[], None] = lambda: None) -> Audit:
    """Audit a core in a child.

    :param opened: the core as the parent has opened it, or None to open it in the child.
    :param damage: called in the child before the audit.
    """

    def collect() -> int:
        damage()
        if opened is not None:
            kernel.open_kernel = lambda *_: opened
        budget._correction[:] = 0, 0  # for reads of the parent
        return collector.main([str(path)])

    stdout, stderr, returncode, usage = run(collect)
    exit = child._Exit(returncode, stdout, stderr, None, None)
    result = child._interpret(exit, Command([str(path)], required_file=str(path)), Limits(), CPU_S)
    defect = None
    if returncode == -signal.SIGXCPU:
        defect = f"{_OUT_OF_TIME}: {_innermost_call(stderr)}"
    elif b"Traceback" in stderr:
        defect = _innermost_call(stderr)
    elif isinstance(result.error, str) and result.status in ("crashed", "bad_output"):
        defect = result.error
    columns, tables = result.columns or {}, result.tables or {}
    return Audit(
        result.status, result.error, defect, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10, columns, tables
    )


def run(function: Callable[[], int]) -> tuple[bytes, bytes, int, resource.struct_rusage]:
    """Call a function in a child with a collector's limits.

    :return: its stdout, its stderr, its return code as of subprocess, and what it used.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        pid = os.fork()
        if not pid:
            _run_in_child(function, stdout, stderr)
        _, status, usage = os.wait4(pid, 0)
        contents = []
        for file in (stdout, stderr):
            file.seek(0)
            contents.append(file.read())
    return contents[0], contents[1], os.waitstatus_to_exitcode(status), usage


def _run_in_child(function: Callable[[], int], stdout: IO[bytes], stderr: IO[bytes]) -> NoReturn:
    code = 1
    try:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        memory_bytes = Limits().memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # The handler says where the audit was, if it is in Python.
        signal.signal(signal.SIGPROF, lambda number, frame: _die("".join(traceback.format_stack(frame))))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S + 2, CPU_S + 4))
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die(stack: str) -> NoReturn:
    sys.stderr.write(stack)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGXCPU)
    os._exit(1)


def _innermost_call(stderr: bytes) -> str:
    """The exception and the lines of the project in a traceback, or the lines of a stack."""
    lines = stderr.decode(errors="replace").splitlines()
    places = [line.strip() for line in lines if line.startswith('  File "') and "/pipeline/" in line]
    short = [place.partition("/pipeline/")[2].replace('", line ', ":") for place in places[-2:]]
    return " < ".join([*([lines[-1]] if lines and not lines[-1].startswith(" ") else []), *reversed(short)])


def as_json(function: Callable[[], Any]) -> Any:
    """Call a function in a child as `run` does and return its result, which JSON can hold, or what it printed."""

    def call() -> int:
        json.dump(function(), sys.stdout)
        return 0

    stdout, stderr, returncode, _ = run(call)
    return (
        json.loads(stdout) if returncode == 0 else f"the reference ended with {returncode}: {_innermost_call(stderr)}"
    )
