"""The process of a child, started by launch.py: a program that it executes, or a collector that it forks.

A collector needs 0.1 s of CPU time to start Python and to import drgn and its own modules, but a fork of a process that
has done so needs 2 ms. Each thread that audits has such a fork server of its own. It serves one child at a time, so
it needs no lock, and the kernel ends it with its thread.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.fanout.runner import launch

_START_S = 60.0  # to start a fork server and fork; the import of drgn from a busy network filesystem takes seconds
REAP_S = 5.0  # to wait after SIGKILL; a process in uninterruptible sleep (a dead NFS server) survives it
_END_S = 1.0  # from the end of a fork server's socket to that of the server


class ForkServerLost(Exception):
    """A fork server that ended or does not answer.

    :ivar returncode: None if it does not answer.
    :ivar stderr: what it printed.
    """

    def __init__(self, returncode: int | None, stderr: bytes) -> None:
        super().__init__(returncode, stderr)
        self.returncode = returncode
        self.stderr = stderr


class Process:
    """A child in a process group of its own, with pipes for stdout and stderr.

    The group gets SIGKILL once, at the latest at the end of the context, which then reaps the child: until then no
    other group can have its id. But init reaps the child of a lost fork server, so SIGKILL follows the loss at once.

    :ivar returncode: None if the child survived SIGKILL or its fork server was lost.
    """

    _group: int | None = None  # its id; None if it has been killed
    stdout: io.FileIO
    stderr: io.FileIO
    returncode: int | None = None
    lost: ForkServerLost | None = None

    def has_exited(self) -> bool:
        raise NotImplementedError

    def kill_group(self, number: signal.Signals) -> None:
        """Send a signal to the group, unless that has been killed."""
        if self._group is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, number)
        if number == signal.SIGKILL:
            self._group = None

    def _reap(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        with self.stdout, self.stderr:
            self.kill_group(signal.SIGKILL)
            self._reap()


class Program(Process):
    """A child that executes a program.

    :param arguments: those of launch.py after the pid.
    :param stdin: the bytes that the child reads, or None for /dev/null.
    """

    def __init__(self, arguments: Sequence[str], stdin: bytes | None) -> None:
        self.stdout, stdout = _pipe()
        self.stderr, stderr = _pipe()
        with stdout, stderr, contextlib.ExitStack() as stack:
            stdin_file: Any = subprocess.DEVNULL
            if stdin is not None:
                stdin_file = stack.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b"))
                stdin_file.write(stdin)
                stdin_file.seek(0)
            self._popen = _launch("-IS", arguments, environment(), stdin_file, stdout, stderr)
        self._group = self._popen.pid

    def has_exited(self) -> bool:
        return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.returncode = self._popen.wait(REAP_S)


class Collector(Process):
    """A child that the fork server of this thread forks; if the server is lost, the kernel kills the child.

    :param arguments: those of launch.py after the pid, with the collector's arguments for the command.
    :param timeout_s: limit of the start.
    :raises ForkServerLost:
    """

    def __init__(self, arguments: Sequence[str], timeout_s: float) -> None:
        self.stdout, stdout = _pipe()
        self.stderr, stderr = _pipe()
        with contextlib.ExitStack() as on_error:
            self._server = _ForkServer.take()
            on_error.callback(self._server.close)
            with stdout, stderr:
                self._server.send(json.dumps(arguments).encode(), [stdout.fileno(), stderr.fileno()])
            name, number = self._server.receive(min(timeout_s, _START_S))
            if name == b"started":
                self._group = number
            else:  # it was killed before it could say so
                self.returncode = number
            on_error.pop_all()

    def has_exited(self) -> bool:
        return self.returncode is not None or self._server.has_answered()

    def _reap(self) -> None:
        try:
            if self.returncode is None:
                _, self.returncode = self._server.receive(REAP_S)
            self._server.send(b"killed")
        except ForkServerLost as error:
            self.lost = error
            self._server.close()
        else:
            self._server.give_back()


class _ForkServer:
    """A process of launch.py that forks collectors.

    :ivar close: ends the process, as does the end of this object, of its thread and of the runner.
    """

    _idle = threading.local()

    @classmethod
    def take(cls) -> _ForkServer:
        """Return this thread's idle server, or a new one if that has ended or has another parent or environment."""
        server = vars(cls._idle).pop("server", None)
        origin = os.getpid(), environment()
        if server is None or server._origin != origin or server._popen.poll() is not None:
            server = cls(*origin)
        return server

    def give_back(self) -> None:
        self._idle.server = self

    def __init__(self, parent: int, env: dict[str, str]) -> None:
        self._origin = parent, env
        self._socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stderr = os.fdopen(os.memfd_create("stderr"), "w+b")
        with server_socket:
            self._popen = _launch("-P", [], env, server_socket, subprocess.DEVNULL, self._stderr)
        self._answers = select.poll()
        self._answers.register(self._socket, select.POLLIN)
        self.close = weakref.finalize(self, _end, self._popen, self._socket, self._stderr)

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._socket, [message], fds)
        except ConnectionError:
            raise self._lost() from None

    def receive(self, timeout_s: float) -> tuple[bytes, int]:
        """Return the name and the number of the next message: "started" and a pid, or "exited" and a return code."""
        self._socket.settimeout(timeout_s)
        try:
            message = self._socket.recv(64)
        except (TimeoutError, ConnectionError):
            raise self._lost() from None
        if not message:
            raise self._lost()
        name, number = message.split()
        return name, int(number)

    def has_answered(self) -> bool:
        """Whether a message has arrived or the server has ended."""
        return bool(self._answers.poll(0))

    def _lost(self) -> ForkServerLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_S)
        self._stderr.seek(0)
        return ForkServerLost(self._popen.returncode, self._stderr.read())


def _end(server: subprocess.Popen[bytes], control: socket.socket, stderr: IO[bytes]) -> None:
    with control, stderr:
        server.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(REAP_S)


def _launch(
    option: str, arguments: Sequence[str], env: dict[str, str], stdin: Any, stdout: Any, stderr: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, option, launch.__file__, str(os.getpid()), *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd="/",  # `python -m` adds it to sys.path: a directory of cores may also hold a hostile json.py
        env=env,
        start_new_session=True,
    )


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    """Return the reading and the writing end of a pipe."""
    reader, writer = os.pipe()
    return io.FileIO(reader), io.FileIO(writer, "w")


def environment() -> dict[str, str]:
    """Return the runner's environment with this package importable, without Ray's variables: they hold its token."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["PYTHONPATH"] = python_path()
    env.setdefault("OMP_NUM_THREADS", "1")  # a task has one CPU; by default drgn reads DWARF with a thread per CPU
    return env


def python_path() -> str:
    """Return a PYTHONPATH with which a child imports this package from any working directory."""
    parent = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [parent, os.environ.get("PYTHONPATH")]))
