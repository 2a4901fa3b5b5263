"""The child process that audits a host over ssh: sends the collector, forwards its output and explains failures.

The runner starts it by path with `python -IS`, so it imports nothing of the project. It retries a connection that is
closed before the login: sshd drops some of many simultaneous connections (MaxStartups). It does not retry a connection
that is lost after the login, but exits with CONNECTION_LOST_EXIT_CODE: the driver then starts a new attempt.

stdin: a line of JSON, then the bootstrap, then the sources of the collector.
"""

import ctypes
import json
import os
import queue
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

CONNECTION_LOST_EXIT_CODE = 75
"""Exit code of this program where the connection was lost after the login."""
STDERR_SEPARATOR = "; stderr: "
"""Separates an error of ours from the line of stderr that it quotes, which is untrusted and may hold any name."""

_RETRY_DELAYS_S = (1, 2, 4)  # each multiplied by a random factor from 0.5 to 1.5
_HEARTBEAT_S = 20  # collector/remote.py exits after 90 s of silence
_SSH_ERROR_EXIT_CODE = 255
_NOT_FOUND_EXIT_CODE = 127
# Signals that kill a collector. An exit code of 128 + any other signal comes from ssh or the host's shell.
_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS}
_PR_SET_PDEATHSIG = 1

# Pattern in ssh's stderr, status, error_type and explanation; the first match counts. Status None: retry.
_SSH_ERRORS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "denied", "HostKeyChanged",
     "the host key is not the one in known_hosts: find out why, then ssh-keygen -R and ssh-keyscan"),
    (r"Host key verification failed|host key is known for", "denied", "HostKeyUnknown",
     "add the host key to known_hosts, with ssh-keyscan, and check its fingerprint"),
    (r"Permission denied|Too many authentication failures|No more authentication methods", "denied",
     "AuthenticationFailed",
     "no key of this account is accepted there: check authorized_keys, the agent and the user name"),
    (r"Could not resolve hostname", "unreachable", "NameNotResolved", "the resolver does not know the host name"),
    (r"Connection refused", "unreachable", "ConnectionRefused", "nothing listens on its port"),
    (r"No route to host|Network is unreachable", "unreachable", "NoRoute", "there is no route to it"),
    (r"timed out", "unreachable", "ConnectTimeout", "it does not answer"),
    (r"[Cc]onfiguration option|config file|Bad owner|argument|keyword", "unreachable", "ConfigError",
     "ssh rejects its configuration"),
    (r"exchange_identification|Connection (closed|reset) by|banner exchange", None, "ConnectionClosed",
     "perhaps too many connections at a time: raise MaxStartups in sshd_config or lower --ssh-parallel"),
)  # fmt: skip
_SUDO_ERROR = re.compile(
    r"^sudo: .*(password is required|terminal is required|must have a tty)"
    r"|is not in the sudoers file|not allowed to (execute|run)",
    re.MULTILINE,
)


# The line of collector/remote.py with Python's version, extension suffix, architecture and C library.
_HOST_LINE = re.compile(
    rb"\nlist-lru-audit host (\d\.\d{1,3}) ([!-~]{1,99}) (\w{1,20}) (\w{1,20} \d{1,3}\.\d{1,3})[\d.]*\n"
)
_WHEEL = re.compile(r"drgn-([\d.]+)-(\w+)-(\w+)-([\w.]+)\.whl")
# Old platform tags and their names since PEP 600.
_ALIASES = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
_OLDEST_DRGN = (0, 0, 31)
# In the local file header of a zip member: the lengths of its name and extra field. Both and the data follow.
_ZIP_LENGTHS_OFFSET = 26

_LIBC = ctypes.CDLL(None)


class SessionError(Exception):
    """The reason for a missing snapshot.

    :param status: a status of the collector, or None if a retry may succeed.
    """

    def __init__(self, status: str | None, error_type: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error_type = error_type


class Connection:
    """One ssh process.

    :raises SessionError: ssh cannot be started.
    """

    def __init__(self, header: dict[str, Any], payload: bytes) -> None:
        self._header = header
        self._stderr = bytearray()
        self._interpreter: str | None = None
        try:
            self._process: Any = subprocess.Popen(
                header["argv"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            text = f"cannot run ssh on {os.uname().nodename}: {error.strerror}; install OpenSSH's client"
            raise SessionError("unreachable", "NoSsh", text) from error
        self._send_queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._send_queue.put(payload)
        threading.Thread(target=self._send, daemon=True).start()
        self._stderr_thread = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_thread.start()

    def _send(self) -> None:
        """Write the queued data to ssh's stdin, and a newline as heartbeat while the queue is empty."""
        try:
            while True:
                try:
                    data = self._send_queue.get(timeout=_HEARTBEAT_S)
                except queue.Empty:
                    data = b"\n"
                if data is None:
                    break
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except OSError:
            pass  # the connection has ended; check() explains the exit code

    def _read_stderr(self) -> None:
        """Forward ssh's stderr and keep its tail; take the interpreter's path from the line with the start marker."""
        marker = self._header["start_marker"].encode()
        for line in iter(lambda: self._process.stderr.readline(4096), b""):
            if self._interpreter is None and marker in line:
                self._interpreter = line.partition(marker)[2].strip().decode(errors="replace")
            else:
                self._stderr += line
                del self._stderr[:-65536]
                os.write(2, line)

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
                match = _HOST_LINE.search(tail)
                if match is not None:
                    tail = None
                    host = (word.decode() for word in match.groups())
                    self._send_queue.put(_drgn_wheel(self._header["drgn_wheels"], *host))
        code = self._process.wait()
        self._send_queue.put(None)
        self._stderr_thread.join(1)  # a shared connection (ControlMaster) keeps stderr open
        return code if code >= 0 else 128 - code

    def check(self, code: int) -> None:
        """Explain an exit code.

        :raises SessionError: ssh, sudo or the host's shell kept the collector from running.
        """
        stderr_text = self._stderr.decode(errors="replace")
        if self._interpreter is None and code == _SSH_ERROR_EXIT_CODE:
            raise _ssh_failure(stderr_text)
        if self._interpreter is None and code == _NOT_FOUND_EXIT_CODE:
            names = self._header["python"] or "python3 or /usr/libexec/platform-python"
            text = f"no {names} on the host; install python3 and drgn, or name another python"
            raise SessionError("no_drgn", "NoInterpreter", text)
        if code and (refusal := _SUDO_ERROR.search(stderr_text)):
            line = next(line for line in stderr_text.splitlines() if refusal[0].splitlines()[0] in line)
            rule = f"{self._header['user'] or 'USER'} ALL=(root) NOPASSWD: {self._interpreter}"
            text = f"sudo refuses; add the line {rule} to the host's sudoers{STDERR_SEPARATOR}{line}"
            raise SessionError("denied", "Sudo", text)
        if self._interpreter is None and code:
            stderr_text = stderr_text.strip()
            quote = f"{STDERR_SEPARATOR}{stderr_text.split(chr(10))[-1]}" if stderr_text else ""
            text = f"the login does not run commands (exit code {code}); is the account restricted or expired?{quote}"
            raise SessionError("denied", "NoShell", text)
        if code == _NOT_FOUND_EXIT_CODE and "sudo" in stderr_text:
            raise SessionError("denied", "Sudo", "sudo is not installed on the host; log in as root")


def main() -> None:
    header = json.loads(sys.stdin.buffer.readline())
    bootstrap = sys.stdin.buffer.read(header["bootstrap_bytes"])
    sources = sys.stdin.buffer.read()
    memory_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    request = {
        "args": header["collector_args"],
        "sources_bytes": len(sources),
        "ship_drgn": header["drgn_wheels"] is not None,
        "niceness": os.nice(0),
        "memory_bytes": None if memory_bytes == resource.RLIM_INFINITY else memory_bytes,
    }
    payload = bootstrap + repr(request).encode() + b"\n" + sources
    for delay_s in (*_RETRY_DELAYS_S, None):
        try:
            connection = Connection(header, payload)
            code = connection.forward()
            connection.check(code)
            break
        except SessionError as failure:
            if failure.status is None and delay_s is not None:
                import random

                time.sleep(delay_s * random.uniform(0.5, 1.5))
            else:
                _fail(failure)
    if code == _SSH_ERROR_EXIT_CODE:
        sys.exit(CONNECTION_LOST_EXIT_CODE)
    if code - 128 in _CRASHES:
        os.kill(os.getpid(), code - 128)
    sys.exit(code if code != CONNECTION_LOST_EXIT_CODE else 1)


def _fail(failure: SessionError) -> NoReturn:
    """Print the failure as a frame, as the collector does, and exit."""
    error = {"status": failure.status or "unreachable", "error_type": failure.error_type, "error": str(failure)}
    print("\nlist-lru-audit snapshot 1")
    print(json.dumps({"error": error}), flush=True)
    os._exit(1)  # immediately, without waiting for ssh and the threads


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ssh_failure(stderr_text: str) -> SessionError:
    """Return the failure that ssh's stderr stands for."""
    # With LogLevel=ERROR ssh prints nothing when the connection is closed during the key exchange.
    lines = [line.strip() for line in stderr_text.splitlines() if line.strip()] or ["Connection closed by the host"]
    for pattern, status, error_type, explanation in _SSH_ERRORS:
        line = next((line for line in lines if re.search(pattern, line)), None)
        if line is not None:
            tries = "" if status else f"closed in each of {len(_RETRY_DELAYS_S) + 1} tries; "
            return SessionError(status, error_type, f"{tries}{explanation}{STDERR_SEPARATOR}{line.strip('@ ')}")
    return SessionError("unreachable", "SshFailed", f"ssh made no connection{STDERR_SEPARATOR}{lines[-1]}")


def _drgn_wheel(directory: str, python: str, suffix: str, arch: str, libc: str) -> bytes:
    """Return the newest drgn wheel that fits a host, in the form that collector/remote.py reads.

    :param suffix: of the interpreter's extension modules, such as ``.cpython-311-x86_64-linux-gnu.so``.
    :param libc: name and version of the C library, such as ``glibc 2.31``.
    :raises SessionError: no wheel fits, or it cannot be read.
    """
    import zipfile  # seldom needed; zipfile and random would take a third of this program's start

    tag = "cp" + python.replace(".", "")
    abi = "cp" + suffix.split("-")[1] if suffix.startswith(".cpython-") else ""
    candidates = []
    try:
        for name in os.listdir(directory):
            match = _WHEEL.fullmatch(name)
            if match and tag in match[2].split(".") and match[3] == abi and _is_compatible(match[4], arch, libc):
                candidates.append((tuple(int(part) for part in match[1].split(".")), name))
        if candidates and max(candidates)[0] >= _OLDEST_DRGN:
            return _wheel_contents(os.path.join(directory, max(candidates)[1]))
    except (OSError, zipfile.BadZipFile) as error:
        text = f"the host has no drgn, and no wheel can be read from {directory}: {error}"
        raise SessionError("no_drgn", type(error).__name__, text) from error
    raise SessionError(
        "no_drgn",
        "NoWheel",
        f"the host has no drgn, and no wheel in {directory} fits Python {python} on {arch} with {libc}; "
        f"run lru-audit fetch-drgn --python {python} --arch {arch}, or install drgn 0.0.31 or newer on the host",
    )


def _is_compatible(platforms: str, arch: str, libc: str) -> bool:
    """Whether a wheel with these platform tags (joined by dots) runs with a C library such as ``glibc 2.31``."""
    name, _, version = libc.partition(" ")
    for platform in platforms.split("."):
        for legacy, modern in _ALIASES.items():
            platform = platform.replace(f"{legacy}_", f"{modern}_")
        match = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", platform)
        if name == "glibc" and match and match[3] == arch:
            libc_version = tuple(int(part) for part in version.split("."))
            if (int(match[1]), int(match[2])) <= libc_version:
                return True
    return False


def _wheel_contents(path: str) -> bytes:
    """Return a line that lists a wheel's members, then their data, still compressed."""
    import zipfile

    members, data = [], []
    with zipfile.ZipFile(path) as wheel, open(path, "rb") as file:
        for entry in wheel.infolist():
            if entry.filename.endswith(".py") or ".so" in entry.filename:
                file.seek(entry.header_offset + _ZIP_LENGTHS_OFFSET)
                file.seek(sum(struct.unpack("<2H", file.read(4))), os.SEEK_CUR)
                data.append(file.read(entry.compress_size))
                members.append((entry.filename, entry.compress_size, entry.compress_type == zipfile.ZIP_DEFLATED))
    return repr(members).encode() + b"\n" + b"".join(data)


if __name__ == "__main__":
    main()
