"""One ssh process: sends the payload to the host, forwards the output, and explains the end."""

import os
import queue
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from . import drgn_wheels, failures
from .client import ERROR_EXIT_CODE, Client, die_with_parent, environment
from .failures import SessionError, quote

_HEARTBEAT_S = 20  # collector/remote.py exits after 90 s of silence
_NOT_FOUND_EXIT_CODE = 127
_BLOCK_BYTES = 1 << 16

# The prefix of a line that LogVerbose has ssh print, and the one debug message of interest.
_VERBOSE = re.compile(rb"(debug\d: )?[\w.]+:(\w+)\(\):\d+ \([^)]*\bpid=(\d+)\): ")
_SERVER_SAYS = re.compile(rb"banner line \d+: ")
_SERVER_ANSWERS = re.compile(rb"banner line \d+: |Remote protocol version ")


class Connection:
    """One ssh process.

    :param login_timeout_s: limit from its start to the start of the host's shell.
    :raises SessionError: ssh cannot be started.
    """

    def __init__(
        self, header: dict[str, Any], client: Client, payload: bytes, share: bool, login_timeout_s: float | None
    ) -> None:
        self._header = header
        self._client = client
        self._stderr = bytearray()
        self._interpreter: str | None = None
        self._payload = payload
        self._package: dict[str, Any] | None = header["package"]
        self._package_form: str | None = None
        self._refusal: tuple[str, str] | None = None
        self._has_begun = False
        self._has_answered = False
        self._is_stuck = False
        self._process: Any = subprocess.Popen(
            client.argv(header["command_line"], share),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=die_with_parent,
        )
        self._send_queue: queue.SimpleQueue[bytes | str | None] = queue.SimpleQueue()
        if self._package is None:  # else the host's shell says first whether it needs a Python
            self._send_queue.put(payload)
        threading.Thread(target=self._send, daemon=True).start()
        self._stderr_thread = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_thread.start()
        if login_timeout_s is not None:
            timer = threading.Timer(login_timeout_s, self._stop_unless_logged_in)
            timer.daemon = True
            timer.start()

    @property
    def _has_shell(self) -> bool:
        """Whether ssh has logged in and the host's shell has run."""
        return self._interpreter is not None or self._package_form is not None

    def _stop_unless_logged_in(self) -> None:
        if not self._has_shell:
            self._is_stuck = True
            self._process.kill()

    def _send(self) -> None:
        """Write the queued data to ssh's stdin; after the payload, a newline as heartbeat while the queue is empty."""
        heartbeat_s = None
        try:
            while True:
                try:
                    data = self._send_queue.get(timeout=heartbeat_s)
                except queue.Empty:
                    data = b"\n"
                if data is None:
                    break
                for block in _package_blocks(self._package, data) if isinstance(data, str) else [data]:
                    self._process.stdin.write(block)
                self._process.stdin.flush()
                if data is self._payload:
                    heartbeat_s = _HEARTBEAT_S
        except OSError:
            pass  # the connection has ended; check() explains the exit code

    def _read_stderr(self) -> None:
        """Forward ssh's stderr and keep its tail, without the lines that are meant for this program."""
        for line in iter(lambda: self._process.stderr.readline(4096), b""):
            self._has_answered |= self._is_answer(line)
            if not self._take_marker(line.decode(errors="replace")) and (line := _without_verbosity(line)):
                self._stderr += line
                del self._stderr[:-65536]
                os.write(2, line)

    def _is_answer(self, line: bytes) -> bool:
        """Whether the host itself has answered, says the ssh of this process (from 8.5), not that of its jump host."""
        prefix = _VERBOSE.match(line)
        if prefix is None or int(prefix[3]) != self._process.pid:
            return False
        return _SERVER_ANSWERS.match(line, prefix.end()) is not None

    def _take_marker(self, line: str) -> bool:
        """Do what a line with a marker of transports/payload.py asks for; return whether it has one."""
        if not self._has_begun and self._header["announcement"] in line:
            self._has_begun = True
            self._stderr.clear()  # from now on the words are the collector's, or ssh's
            return True
        _, is_start, interpreter = line.partition(self._header["start_marker"])
        if is_start and self._interpreter is None:
            self._interpreter = interpreter.strip()
            if self._package is not None:
                self._send_queue.put(self._payload)
            return True
        if self._package is None or self._interpreter is not None:
            return False
        _, is_request, form = line.partition(self._package["ask_marker"])
        if is_request and self._package_form is None:
            self._package_form = form.strip()
            self._send_queue.put(self._package_form)
            return True
        _, is_refusal, reason = line.partition(self._package["refusal_marker"])
        if is_refusal:
            word, _, detail = reason.strip().partition(" ")
            self._refusal = word, detail
        return bool(is_refusal)

    def forward(self) -> int:
        """Forward stdout until its end; return ssh's exit code, or 128 + a signal as shells do.

        :raises SessionError: the host needs drgn, and no wheel fits it.
        """
        tail = b"\n" if self._header["drgn_wheels"] is not None else None
        for chunk in iter(lambda: os.read(self._process.stdout.fileno(), 1 << 16), b""):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if tail is not None:
                tail = (tail + chunk)[-(1 << 17) :]
                host = drgn_wheels.asking_host(tail)
                if host is not None:
                    tail = None
                    self._send_queue.put(drgn_wheels.load(self._header["drgn_wheels"], *host))
        code = self._process.wait()
        self._send_queue.put(None)
        self._stderr_thread.join(1)  # a shared connection (ControlMaster) keeps stderr open
        return code if code >= 0 else 128 - code

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the collector says that an allocation has failed."""
        stderr_text = self._stderr.decode(errors="replace")
        return self._has_begun and any(message in stderr_text for message in self._header["out_of_memory"])

    def check(self, code: int) -> None:
        """Explain an exit code.

        :raises SessionError: ssh, sudo or the host's shell kept the collector from running.
        """
        stderr_text = self._stderr.decode(errors="replace")
        if self._is_stuck:
            text = f"no login over the shared connection of ssh's ControlPath{quote(stderr_text)}"
            raise SessionError("unreachable", "ConnectTimeout", text)
        if code == ERROR_EXIT_CODE and failures.is_lost(stderr_text):
            return
        if code == ERROR_EXIT_CODE and not self._has_shell:
            client = self._client
            proxy = None if self._has_answered else client.proxy
            raise failures.of_ssh(stderr_text, proxy, client.is_through_ssh, client.connect_timeout_s)
        if self._refusal is not None and code == _NOT_FOUND_EXIT_CODE:
            raise failures.of_package(self._package, *self._refusal, stderr_text)
        if not self._has_shell and code == _NOT_FOUND_EXIT_CODE:
            python = self._header["python"]
            names = shlex.split(python)[0] if python else "python3 or /usr/libexec/platform-python"
            text = f"no {names} on the host; install python3 and drgn, or name another python"
            raise SessionError("no_drgn", "NoInterpreter", text)
        # Also with exit code 0. If stdout has a snapshot after all, that counts.
        if not self._has_shell:
            text = f"the login does not run commands (exit code {code}); is the account restricted or expired?"
            raise SessionError("denied", "NoShell", text + quote(stderr_text))
        if self._header["become"] and not self._has_begun:
            rule = "ALL" if self._package_form is not None else self._interpreter  # of a sent Python the path differs
            raise failures.of_sudo(
                code, stderr_text, self._client.user, self._header["python"], self._interpreter, rule
            )
        if code not in (0, ERROR_EXIT_CODE) and not self._has_begun and " " in (self._header["python"] or ""):
            text = f"{self._header['python']} did not start Python on the host (exit code {code})"
            raise SessionError("no_drgn", "NoInterpreter", text + quote(stderr_text))


def _without_verbosity(line: bytes) -> bytes:
    """Return a line of ssh's stderr as without LogVerbose, or what a server says in place of its banner."""
    prefix = _VERBOSE.match(line)
    if prefix is None:
        return line
    text = line[prefix.end() :]
    if prefix[1] and not _SERVER_SAYS.match(text):
        return b""
    name = b"kex_exchange_identification: " if prefix[2] == b"kex_exchange_identification" else b""
    return name + _SERVER_SAYS.sub(b"the server says: ", text)


def _package_blocks(package: Any, form: str) -> Iterator[bytes]:
    """Yield the archive of a package, compressed ("gzip") or not ("tar"), in blocks."""
    import gzip  # seldom needed

    with open(package["path"], "rb") as file:
        archive = file if form == "gzip" else gzip.GzipFile(fileobj=file)
        yield from iter(lambda: archive.read(_BLOCK_BYTES), b"")
