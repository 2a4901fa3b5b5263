"""The child process of one target. Whatever the child does, it ends in time and yields one attempt.

A soft cancel does not stop C code, a target can be a hung disk or a hostile machine, and drgn can crash. Each
collection is therefore a process of its own with a deadline, a memory limit and bounded output, and is killed together
with its process group.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.collector import formats
from pipeline.collector.status import OUT_OF_MEMORY
from pipeline.common.limits import memory_bytes
from pipeline.common.text import joined_lines, printable
from pipeline.fanout import transports
from pipeline.fanout.runner import frame, unpack
from pipeline.fanout.runner.process import REAP_S, Collector, ForkServerLost, Process, Program
from pipeline.inventory import Target

_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_DRAIN_S = 1.0  # to read the pipes after the child's exit, as its descendants may still hold them
_STDERR_TAIL_BYTES = 4096
_ERROR_CHARACTERS = 500
_QUOTE_CHARACTERS = 300  # of stderr in an error
_KILLED_HINT = (
    ", probably by the kernel for want of memory: collect fewer targets at a time, or give that node or container more"
)
_MIN_TIMEOUT_S = 0.1  # to collect a core for which no time was left when it was unpacked


@dataclass(frozen=True)
class Limits:
    """The limits of one collection.

    :param memory_bytes: limit of the collector's data, or what its container may use, if that is less.
    :param output_bytes: limit of stdout; a snapshot of 10,000 list_lrus is 3 MB.
    :param unpack_directory: where packed cores are unpacked, created if its parent exists; default TMPDIR.
    """

    timeout_s: float = 600.0
    memory_bytes: int = 4 << 30
    output_bytes: int = 64 << 20
    niceness: int = 10
    unpack_directory: str | None = None


_usable_memory_bytes = functools.cache(memory_bytes)  # of this process, which collects many targets


class _Exit(NamedTuple):
    """The end of a child process and its output.

    :param returncode: None if the child survived SIGKILL or its fork server was lost.
    :param exceeded_limit: "timeout", "output" or None.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes
    exceeded_limit: str | None
    lost: ForkServerLost | None


class _Result(NamedTuple):
    """The result of one collection, in the order of the last parameters of `result`."""

    status: str
    error_type: str | None = None
    error: str | None = None
    columns: dict[str, Any] | None = None
    tables: dict[str, Any] | None = None


def run(target: Target, attempt: int, limits: Limits) -> dict[str, Any]:
    """Collect one target and return the attempt, which can be dumped as JSON.

    ``{"attempt": row of attempts, "columns": the collector's columns of targets, "tables": the other tables}``; the
    last two are empty unless the status is good. No target and no child can make this function raise.
    """
    started_at = time.time_ns() // 1000
    start = time.monotonic()
    if not target.over_ssh:
        limits = replace(limits, memory_bytes=min(limits.memory_bytes, _usable_memory_bytes()))
    try:
        collection = _collect(target, limits)
    except ForkServerLost as error:
        collection = _lost(error)
    except OSError as error:  # out of processes or file descriptors; a retry may find some
        collection = _Result("lost", type(error).__name__, f"cannot start a child process: {error.strerror}")
    duration_ms = round((time.monotonic() - start) * 1000)
    return result(attempt, socket.gethostname(), started_at, duration_ms, *collection)


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
    """Return one attempt in the form that `run` returns.

    :param started_at: microseconds since the epoch.
    """
    row = {
        "attempt": attempt,
        "node": node,
        "started_at": started_at,
        "duration_ms": duration_ms,
        "status": status,
        "error_type": error_type and error_line(error_type),
        "error": error and error_line(error),
    }
    return {"attempt": row, "columns": columns or {}, "tables": tables or {}}


def outcome(target: Target, attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of a target: the result of the last attempt, and all attempts as rows.

    In the target's row `started_at` is that of the first attempt and `duration_ms` the sum over all attempts. Without
    attempts the status is `not_run`.
    """
    rows = [attempt["attempt"] for attempt in attempts]
    last = (
        attempts[-1]
        if attempts
        else result(0, None, 0, 0, "not_run", None, "the run was published before this target was collected")
    )
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


def _collect(target: Target, limits: Limits) -> _Result:
    timeout_s = target.timeout_s or limits.timeout_s
    start = time.monotonic()
    collection = _collect_as_is(target, limits, timeout_s)
    if collection.error_type == formats.PACKED and target.kind == "vmcore" and not target.over_ssh:
        return _collect_packed(target, collection, limits, timeout_s, start + timeout_s)
    return collection


def _collect_packed(target: Target, refusal: _Result, limits: Limits, timeout_s: float, deadline: float) -> _Result:
    """Unpack a core, collect it, and remove it.

    :param refusal: the result for the packed core, whose error has the command that unpacks it.
    :param timeout_s: the time for both until the deadline.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(unpack.directory(limits.unpack_directory))
        except OSError as error:
            return refusal._replace(error=f"{refusal.error}; no room for it in {error.filename}: {error.strerror}")
        failure = _unpack(target.source, directory, limits, deadline)
        if failure is not None and failure.status != "timeout":
            return failure._replace(error=f"{refusal.error}; {failure.error}")
        core = os.path.join(directory, unpack.CORE)
        remaining_s = max(_MIN_TIMEOUT_S, deadline - time.monotonic())
        result = failure or _collect_as_is(replace(target, source=core), limits, remaining_s)
    if result.status == "timeout":
        return result._replace(error=f"no result after {timeout_s:g} s, with the time to unpack it; {refusal.error}")
    if result.error is None:
        return result
    folder = os.path.dirname(target.source) or os.curdir
    return result._replace(error=result.error.replace(core, target.source).replace(directory, folder))


def _unpack(source: str, directory: str, limits: Limits, deadline: float) -> _Result | None:
    """Unpack a core in a child; return the failure, or None."""
    command = transports.Command([source, directory], [sys.executable, "-m", unpack.__name__])
    timeout_s = deadline - time.monotonic()
    child = _run_child(command, limits, timeout_s)
    return None if child.returncode == 0 else _interpret(child, command, limits, timeout_s)


def _collect_as_is(target: Target, limits: Limits, timeout_s: float) -> _Result:
    try:
        command = transports.command(replace(target, timeout_s=timeout_s))
    except transports.TargetError as error:
        return _Result("unreachable", "TargetError", str(error))
    collection = _run_command(command, limits, timeout_s)
    text, host = collection.error, command.host
    if text is not None and host is not None and host not in without_quoted_stderr(text):
        return collection._replace(error=f"{host}: {text}")
    return collection


def _run_command(command: transports.Command, limits: Limits, timeout_s: float) -> _Result:
    return _interpret(_run_child(command, limits, timeout_s), command, limits, timeout_s)


def _interpret(child: _Exit, command: transports.Command, limits: Limits, timeout_s: float) -> _Result:
    try:
        match frame.parse(child.stdout):
            case frame.Failure(status, error_type, error):
                return _Result(status, error_type, error)
            case frame.Snapshot(columns, tables, None):
                return _Result("ok", None, None, columns, tables)
            case frame.Snapshot(columns, tables, reason):
                return _Result("unsupported", None, reason, columns, tables)
    except frame.FrameError as error:
        if command.required_file is not None and child.returncode == -signal.SIGBUS:
            text = f"{command.required_file} shrank while it was read, or its disk failed (SIGBUS); audit a copy of it"
            return _Result("bad_core", "signal:SIGBUS", text)
        return _failure(child, error, limits, timeout_s, command.host is not None)


def _failure(child: _Exit, error: frame.FrameError, limits: Limits, timeout_s: float, is_remote: bool) -> _Result:
    """Return the result of a child that printed no valid frame.

    :param is_remote: whether programs of another host print on its stderr, and not the collector alone.
    """
    stderr_quote = _stderr_quote(child.stderr)
    if child.exceeded_limit == "timeout":
        return _Result("timeout", "deadline", f"no result after {timeout_s:g} s{stderr_quote}")
    if child.exceeded_limit == "output":
        return _Result("bad_output", "output", f"more than {limits.output_bytes >> 20} MiB on stdout, and {error}")
    if child.lost is not None:
        return _lost(child.lost)
    is_out_of_memory = (
        child.returncode == transports.OUT_OF_MEMORY_EXIT_CODE
        if is_remote
        else any(message.encode() in child.stderr for message in OUT_OF_MEMORY)
    )
    if is_out_of_memory:
        return _Result("over_budget", "MemoryError", f"needs more than {limits.memory_bytes >> 20} MiB of memory")
    if child.returncode is not None and child.returncode < 0:
        name = _signal_name(-child.returncode)
        hint = _KILLED_HINT if name == "SIGKILL" else ""
        return _Result("crashed", f"signal:{name}", f"killed by {name}{hint}{stderr_quote}")
    if child.returncode == transports.CONNECTION_LOST_EXIT_CODE:
        return _Result("lost", "ConnectionLost", f"the connection ended before the audit did{stderr_quote}")
    return _Result("bad_output", "FrameError", f"{error}; exit code {child.returncode}{stderr_quote}")


def _lost(error: ForkServerLost) -> _Result:
    if error.returncode is None:
        cause = "does not answer"
    elif error.returncode < 0:
        cause = f"was killed by {_signal_name(-error.returncode)}"
    else:
        cause = f"ended with exit code {error.returncode}"
    text = f"the process that forks the collectors {cause}{_stderr_quote(error.stderr)}"
    return _Result("lost", "ForkServerLost", text)


def _run_child(command: transports.Command, limits: Limits, timeout_s: float) -> _Exit:
    arguments = [str(limits.memory_bytes), str(limits.niceness), command.required_file or ""]
    arguments += [*(command.program or ()), *command.args]
    deadline = time.monotonic() + timeout_s
    try:
        child = Program(arguments, command.stdin) if command.program else Collector(arguments, timeout_s)
    except ForkServerLost as error:
        if time.monotonic() < deadline:
            raise
        return _Exit(None, b"", error.stderr, "timeout", error)
    with child:
        stdout, stderr, exceeded_limit = _read_pipes(child, limits.output_bytes, deadline)
    return _Exit(child.returncode, stdout, stderr, exceeded_limit, child.lost)


def _read_pipes(child: Process, output_bytes: int, deadline: float) -> tuple[bytes, bytes, str | None]:
    """Return the child's stdout, the tail of its stderr and the limit that it exceeded.

    This function does not reap the child: until it is reaped, no other process group can have its id.
    """
    stdout, stderr = bytearray(), bytearray()
    exceeded_limit = None
    has_exited = False
    signals = iter((signal.SIGTERM, signal.SIGKILL))
    with selectors.DefaultSelector() as pipes:
        pipes.register(child.stdout, selectors.EVENT_READ, stdout)
        pipes.register(child.stderr, selectors.EVENT_READ, stderr)
        while pipes.get_map() or not has_exited:
            # EOF on the pipes tells of the child's exit; poll for the case that another process holds them open.
            for key, _ in pipes.select(0.05 if pipes.get_map() else 0.002):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    pipes.unregister(key.fileobj)
            del stderr[:-_STDERR_TAIL_BYTES]
            if len(stdout) > output_bytes:
                return bytes(stdout), bytes(stderr), "output"
            now = time.monotonic()
            if not has_exited and child.has_exited():
                has_exited = True
                deadline = now + _DRAIN_S
                child.kill_group(signal.SIGKILL)
            elif now >= deadline:
                next_signal = None if has_exited else next(signals, None)
                if next_signal is None:
                    break
                child.kill_group(next_signal)
                exceeded_limit = "timeout"
                deadline = now + (_GRACE_S if next_signal == signal.SIGTERM else REAP_S)
    return bytes(stdout), bytes(stderr), exceeded_limit


def _stderr_quote(stderr: bytes) -> str:
    """Return the end of stderr as the suffix of an error, or nothing if stderr is empty."""
    quote = joined_lines(stderr.decode(errors="backslashreplace"), _QUOTE_CHARACTERS, keep_end=True)
    return quote and transports.STDERR_SEPARATOR + quote


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def without_quoted_stderr(error: str) -> str:
    """Return an error up to the line of stderr that it quotes."""
    return error.partition(transports.STDERR_SEPARATOR)[0]


def error_line(text: str) -> str:
    """Return untrusted text as one printable line of at most 500 characters."""
    text = printable(text[: _ERROR_CHARACTERS + 1])
    return text if len(text) <= _ERROR_CHARACTERS else text[: _ERROR_CHARACTERS - 4] + " ..."
