"""One child process for one target: whatever the child does, it ends in time and becomes one attempt.

A soft cancel does not stop C code, a target can be a hung disk or a hostile machine, and drgn can crash: so each
collection is a process of its own, with a deadline, a memory limit and bounded output, killed with its group.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.collector.status import OUT_OF_MEMORY
from pipeline.common.text import printable
from pipeline.fanout import transports
from pipeline.fanout.runner import frame, launch
from pipeline.inventory import Target

_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_REAP_S = 5.0  # after SIGKILL; a child in uninterruptible sleep (a dead NFS server) outlives that
_DRAIN_S = 1.0  # after the child's end, for what still holds its pipes
_STDERR_TAIL_BYTES = 4096
_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Limits:
    """What one collection may use. output_bytes: of stdout; a snapshot of 10,000 list_lrus is 3 MB."""

    timeout_s: float = 600.0
    memory_bytes: int = 4 << 30
    output_bytes: int = 64 << 20
    niceness: int = 10


class _Exit(NamedTuple):
    """How a child ended. returncode: None where not even SIGKILL ended it; stopped: by which limit."""

    returncode: int | None
    stdout: bytes
    stderr: bytes
    stopped: str | None


class _End(NamedTuple):
    status: str
    error_type: str | None = None
    error: str | None = None
    columns: dict[str, Any] | None = None
    tables: dict[str, Any] | None = None


def run(target: Target, attempt: int, limits: Limits) -> dict[str, Any]:
    """Collect one target and return the attempt, JSON-able.

    ``{"attempt": row of attempts, "columns": the collector's columns of targets, "tables": the other tables}``,
    the last two empty unless the status is good. Never raises for what the target or its child does.
    """
    started_at = time.time_ns() // 1000
    start = time.monotonic()
    try:
        end = _collect(target, limits)
    except OSError as error:  # no process or no file descriptor to be had; another node or moment may have one
        end = _End("lost", type(error).__name__, f"cannot start a child: {error.strerror}")
    duration_ms = round((time.monotonic() - start) * 1000)
    return result(attempt, socket.gethostname(), started_at, duration_ms, *end)


def result(
    attempt: int,
    node: str | None,
    started_at: int,
    duration_ms: int,
    status: str,
    error_type: str | None = None,
    error: str | None = None,
    columns: dict[str, Any] | None = None,
    tables: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one attempt in the form that `run` returns; started_at in microseconds since the epoch."""
    row = {
        "attempt": attempt,
        "node": node,
        "started_at": started_at,
        "duration_ms": duration_ms,
        "status": status,
        "error_type": error_type and bounded(error_type),
        "error": error and bounded(error),
    }
    return {"attempt": row, "columns": columns or {}, "tables": tables or {}}


def outcome(target: Target, attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the final result of a target: the last attempt's, and all attempts as rows; without one, `not_run`.

    In the row `started_at` is the first attempt's and `duration_ms` the sum of all.
    """
    rows = [attempt["attempt"] for attempt in attempts]
    last = attempts[-1] if attempts else result(0, None, 0, 0, "not_run", None, "the run was published before its turn")
    row = {
        "kind": target.kind,
        "source": printable(target.source),
        "via": target.via,
        "labels": target.labels,
        "status": last["attempt"]["status"],
        "error_type": last["attempt"]["error_type"],
        "error": last["attempt"]["error"],
        "attempts": len(rows),
        "started_at": rows[0]["started_at"] if rows else None,
        "duration_ms": sum(row["duration_ms"] for row in rows) if rows else None,
        **last["columns"],
    }
    return {"target": target.name, "row": row, "attempts": rows, "tables": last["tables"]}


def _collect(target: Target, limits: Limits) -> _End:
    try:
        command = transports.command(target)
    except transports.TargetError as error:
        return _End("unreachable", "TargetError", str(error))
    end = _run(command, limits, target.timeout_s or limits.timeout_s)
    if end.error is not None and command.host is not None and command.host not in own_words(end.error):
        return end._replace(error=f"{command.host}: {end.error}")
    return end


def _run(command: transports.Command, limits: Limits, timeout_s: float) -> _End:
    child = _run_child(command, limits, timeout_s)
    try:
        match frame.parse(child.stdout):
            case frame.Failure(status, error_type, error):
                return _End(status, error_type, error)
            case frame.Snapshot(columns, tables, None):
                return _End("ok", None, None, columns, tables)
            case frame.Snapshot(columns, tables, reason):
                return _End("unsupported", None, reason, columns, tables)
    except frame.FrameError as error:
        return _without_frame(child, error, limits, timeout_s)


def _without_frame(child: _Exit, error: frame.FrameError, limits: Limits, timeout_s: float) -> _End:
    """Return what to make of a child that did not say how it ended."""
    said = _last_line(child.stderr)
    if child.stopped == "timeout":
        return _End("timeout", "deadline", f"no result after {timeout_s:g} s{said}")
    if child.stopped == "output":
        return _End("bad_output", "output", f"more than {limits.output_bytes >> 20} MiB on stdout, and {error}")
    if any(sign.encode() in child.stderr for sign in OUT_OF_MEMORY):
        return _End("over_budget", "MemoryError", f"needs more than {limits.memory_bytes >> 20} MiB of memory")
    if child.returncode is not None and child.returncode < 0:
        name = _signal_name(-child.returncode)
        hint = ", probably by the kernel, out of memory: collect fewer at a time" * (name == "SIGKILL")
        return _End("crashed", f"signal:{name}", f"killed by {name}{hint}{said}")
    if child.returncode == transports.LOST:
        return _End("lost", "ConnectionLost", f"the connection ended before the audit did{said}")
    return _End("bad_output", "FrameError", f"{error}; exit code {child.returncode}{said}")


def _run_child(command: transports.Command, limits: Limits, timeout_s: float) -> _Exit:
    launcher = [sys.executable, "-IS", launch.__file__, str(os.getpid()), str(limits.memory_bytes)]
    argv = [*launcher, str(limits.niceness), command.opens or "", *command.argv]
    with contextlib.ExitStack() as stack:
        stdin: Any = subprocess.DEVNULL
        if command.stdin is not None:
            stdin = stack.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b"))
            stdin.write(command.stdin)
            stdin.seek(0)
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=pipe,
            stderr=pipe,
            cwd="/",  # `python -m` puts it into sys.path: it must not be where a core came with a json.py
            env=_environment(),
            start_new_session=True,
        )
        try:
            stdout, stderr, stopped = _read(child, limits.output_bytes, timeout_s)
        finally:
            _kill_group(child, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_REAP_S)
            for file in (child.stdout, child.stderr):
                file.close()  # type: ignore[union-attr]  # they are pipes
        return _Exit(child.returncode, stdout, stderr, stopped)


def _read(child: subprocess.Popen[bytes], output_bytes: int, timeout_s: float) -> tuple[bytes, bytes, str | None]:
    """Return the child's stdout, the tail of its stderr and the limit that stopped it.

    The child is not reaped here, so that its process group cannot be another's when it is killed.
    """
    stdout, stderr = bytearray(), bytearray()
    stopped = None
    exited = False
    until = time.monotonic() + timeout_s
    signals = iter((signal.SIGTERM, signal.SIGKILL))
    with selectors.DefaultSelector() as pipes:
        pipes.register(child.stdout, selectors.EVENT_READ, stdout)  # type: ignore[arg-type]  # a pipe
        pipes.register(child.stderr, selectors.EVENT_READ, stderr)  # type: ignore[arg-type]
        while pipes.get_map() or not exited:
            # A child's end shows as the end of its pipes; polling is for when something else holds them.
            for key, _ in pipes.select(0.05 if pipes.get_map() else 0.002):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    pipes.unregister(key.fileobj)
            del stderr[:-_STDERR_TAIL_BYTES]
            if len(stdout) > output_bytes:
                return bytes(stdout), bytes(stderr), "output"
            now = time.monotonic()
            if not exited and _exited(child):
                exited = True
                until = now + _DRAIN_S
                _kill_group(child, signal.SIGKILL)
            elif now >= until:
                next_signal = None if exited else next(signals, None)
                if next_signal is None:
                    break
                _kill_group(child, next_signal)
                stopped = "timeout"
                until = now + (_GRACE_S if next_signal == signal.SIGTERM else _REAP_S)
    return bytes(stdout), bytes(stderr), stopped


def _exited(child: subprocess.Popen[bytes]) -> bool:
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _environment() -> dict[str, str]:
    """The runner's own, without Ray's (its token is in there), with this very package importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["PYTHONPATH"] = python_path()
    env.setdefault("OMP_NUM_THREADS", "1")  # a task has one CPU; drgn would read DWARF with all of them
    return env


def python_path() -> str:
    """Return a PYTHONPATH with which a child imports this very package, wherever it runs."""
    here = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="backslashreplace").split("\n")
    return next((f"{transports.SAID}{line.strip()}" for line in reversed(lines) if line.strip()), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def own_words(error: str) -> str:
    """Return an error without what it quotes of a stranger."""
    return error.partition(transports.SAID)[0]


def bounded(text: str) -> str:
    """Return a stranger's text as one printable line of at most 500 characters."""
    text = printable(text[: _ERROR_CHARACTERS + 1])
    return text if len(text) <= _ERROR_CHARACTERS else text[: _ERROR_CHARACTERS - 4] + " ..."
