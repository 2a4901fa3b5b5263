"""The child that reaches a host over ssh: sends the collector, passes on what comes back, explains what does not.

Run by path with `python -IS`, so it imports nothing of the project. A connection that is closed before anybody logged
in is tried again here: sshd closes some of many that come at once (MaxStartups). One that is lost later is for the
fan-out to try again, as an attempt of its own: exit code LOST.

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

LOST = 75
"""Exit code: the connection was lost midway."""
SAID = "; stderr: "
"""Begins, at the end of a reason, what a program or a host said: a stranger's words, with any name in them."""

_WAITS_S = (1, 2, 4)  # between tries, each half of that to one and a half times
_HEARTBEAT_S = 20
_SSH_FAILED = 255
_NOT_FOUND = 127
# What a collector dies of; the others are between ssh and the host.
_DEADLY = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS}
_PR_SET_PDEATHSIG = 1

# What ssh says where no session came about, and what that means: the first that matches. Status None: try again.
_SSH_SAYS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "denied", "HostKeyChanged",
     "the host key is not the one in known_hosts: find out why, then ssh-keygen -R and ssh-keyscan"),
    (r"Host key verification failed|host key is known for", "denied", "HostKeyUnknown",
     "add the host key to known_hosts, with ssh-keyscan, and check its fingerprint"),
    (r"Permission denied|Too many authentication failures|No more authentication methods", "denied",
     "AuthenticationFailed", "no key of this account is accepted there: authorized_keys, agent, user name?"),
    (r"Could not resolve hostname", "unreachable", "NameNotResolved", "the name is not known to the resolver"),
    (r"Connection refused", "unreachable", "ConnectionRefused", "nothing listens at its port"),
    (r"No route to host|Network is unreachable", "unreachable", "NoRoute", "there is no route to it"),
    (r"timed out", "unreachable", "ConnectTimeout", "it does not answer"),
    (r"[Cc]onfiguration option|config file|Bad owner|argument|keyword", "unreachable", "ConfigError",
     "ssh does not take its configuration"),
    (r"exchange_identification|Connection (closed|reset) by|banner exchange", None, "ConnectionClosed",
     "too many connections at a time? MaxStartups in sshd_config, --ssh-parallel here"),
)  # fmt: skip
_SUDO_SAYS = re.compile(
    r"^sudo: .*(password is required|terminal is required|must have a tty)"
    r"|is not in the sudoers file|not allowed to (execute|run)",
    re.MULTILINE,
)


# The line of collector/remote.py: Python's version, suffix of its extensions, architecture, C library.
_HOST_SAYS = re.compile(
    rb"\nlist-lru-audit host (\d\.\d{1,3}) ([!-~]{1,99}) (\w{1,20}) (\w{1,20} \d{1,3}\.\d{1,3})[\d.]*\n"
)
_WHEEL = re.compile(r"drgn-([\d.]+)-(\w+)-(\w+)-([\w.]+)\.whl")
_LEGACY = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
_OLDEST_DRGN = (0, 0, 31)
_LOCAL_NAME_SIZE_AT = 26  # in the header of a member of a zip file; the name, an extra field and the data follow

_LIBC = ctypes.CDLL(None)


class Failure(Exception):
    """Why there is no snapshot. status: None where another try may end better."""

    def __init__(self, status: str | None, error_type: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error_type = error_type


class Connection:
    """One run of ssh."""

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
            raise Failure("unreachable", "NoSsh", text) from error
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox.put(payload)
        threading.Thread(target=self._send, daemon=True).start()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _send(self) -> None:
        """Send what is in the outbox, and a sign of life where there is nothing."""
        try:
            while True:
                try:
                    data = self._outbox.get(timeout=_HEARTBEAT_S)
                except queue.Empty:
                    data = b"\n"
                if data is None:
                    break
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except OSError:
            pass  # the connection has ended, and its exit code says how

    def _listen(self) -> None:
        starts = self._header["starts"].encode()
        for line in iter(lambda: self._process.stderr.readline(4096), b""):
            if self._interpreter is None and starts in line:
                self._interpreter = line.partition(starts)[2].strip().decode(errors="replace")
            else:
                self._stderr += line
                del self._stderr[:-65536]
                os.write(2, line)

    def forward(self) -> int:
        """Pass stdout on until it ends; return ssh's exit code, or 128 + a signal as shells do.

        :raises Failure: this host needs drgn, and no wheel fits.
        """
        tail = b"\n" if self._header["drgn_wheels"] is not None else None
        for chunk in iter(lambda: os.read(self._process.stdout.fileno(), 1 << 16), b""):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if tail is not None:
                tail = (tail + chunk)[-(1 << 17) :]
                asked = _HOST_SAYS.search(tail)
                if asked is not None:
                    tail = None
                    host = (word.decode() for word in asked.groups())
                    self._outbox.put(_drgn_for(self._header["drgn_wheels"], *host))
        code = self._process.wait()
        self._outbox.put(None)
        self._listener.join(1)  # a connection that is shared keeps stderr open
        return code if code >= 0 else 128 - code

    def check(self, code: int) -> None:
        """Raise Failure where ssh, sudo or the host's shell kept the collector from running."""
        said = self._stderr.decode(errors="replace")
        if self._interpreter is None and code == _SSH_FAILED:
            raise _meaning(said)
        if self._interpreter is None and code == _NOT_FOUND:
            tried = self._header["python"] or "python3 nor /usr/libexec/platform-python"
            raise Failure(
                "no_drgn", "NoInterpreter", f"no {tried} there; install python3 and drgn, or name another python"
            )
        if code and (sudo := _SUDO_SAYS.search(said)):
            line = next(line for line in said.splitlines() if sudo[0].splitlines()[0] in line)
            rule = f"{self._header['user'] or 'USER'} ALL=(root) NOPASSWD: {self._interpreter}"
            raise Failure("denied", "Sudo", f"sudo refuses; put the line {rule} into sudoers there{SAID}{line}")
        if self._interpreter is None and code:
            words = f"{SAID}{said.split(chr(10))[-1]}" if (said := said.strip()) else ""
            text = f"the login does not run commands (exit code {code}); is the account restricted or expired?{words}"
            raise Failure("denied", "NoShell", text)
        if code == _NOT_FOUND and "sudo" in said:
            raise Failure("denied", "Sudo", "sudo is not installed there; log in as root")


def main() -> None:
    header = json.loads(sys.stdin.buffer.readline())
    bootstrap = sys.stdin.buffer.read(header["bootstrap_bytes"])
    sources = sys.stdin.buffer.read()
    memory_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    request = {
        "args": header["args"],
        "sources_bytes": len(sources),
        "ship_drgn": header["drgn_wheels"] is not None,
        "niceness": os.nice(0),
        "memory_bytes": None if memory_bytes == resource.RLIM_INFINITY else memory_bytes,
    }
    payload = bootstrap + repr(request).encode() + b"\n" + sources
    for wait_s in (*_WAITS_S, None):
        try:
            connection = Connection(header, payload)
            code = connection.forward()
            connection.check(code)
            break
        except Failure as failure:
            if failure.status is None and wait_s is not None:
                import random

                time.sleep(wait_s * random.uniform(0.5, 1.5))
            else:
                _fail(failure)
    if code == _SSH_FAILED:
        sys.exit(LOST)
    if code - 128 in _DEADLY:
        os.kill(os.getpid(), code - 128)
    sys.exit(code if code != LOST else 1)


def _fail(failure: Failure) -> NoReturn:
    """Say why in a frame, as the collector does."""
    error = {"status": failure.status or "unreachable", "error_type": failure.error_type, "error": str(failure)}
    print("\nlist-lru-audit snapshot 1")
    print(json.dumps({"error": error}), flush=True)
    os._exit(1)  # nobody waits for what ssh may still have to say


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _meaning(said: str) -> Failure:
    """Return the failure that ssh's words stand for."""
    # At this LogLevel it says nothing of a connection that was closed while keys were exchanged.
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["Connection closed by the host"]
    for pattern, status, error_type, meaning in _SSH_SAYS:
        line = next((line for line in lines if re.search(pattern, line)), None)
        if line is not None:
            tries = "" if status else f"closed in each of {len(_WAITS_S) + 1} tries; "
            return Failure(status, error_type, f"{tries}{meaning}{SAID}{line.strip('@ ')}")
    return Failure("unreachable", "SshFailed", f"ssh made no connection{SAID}{lines[-1]}")


def _drgn_for(folder: str, python: str, suffix: str, arch: str, libc: str) -> bytes:
    """Return the newest wheel of drgn that fits a host, as collector/remote.py takes it."""
    import zipfile  # with random a third of this program's start, and seldom needed

    tag = "cp" + python.replace(".", "")
    abi = "cp" + suffix.split("-")[1] if suffix.startswith(".cpython-") else ""
    found = []
    try:
        for name in os.listdir(folder):
            match = _WHEEL.fullmatch(name)
            if match and tag in match[2].split(".") and match[3] == abi and _runs(match[4], arch, libc):
                found.append((tuple(int(part) for part in match[1].split(".")), name))
        if found and max(found)[0] >= _OLDEST_DRGN:
            return _contents(os.path.join(folder, max(found)[1]))
    except (OSError, zipfile.BadZipFile) as error:
        raise Failure(
            "no_drgn", type(error).__name__, f"no drgn there, and none to send in {folder}: {error}"
        ) from error
    raise Failure(
        "no_drgn",
        "NoWheel",
        f"no drgn there, and no wheel in {folder} fits Python {python} on {arch} with {libc}; "
        f"run lru-audit fetch-drgn --python {python} --arch {arch}, or install drgn 0.0.31 or newer there",
    )


def _runs(platforms: str, arch: str, libc: str) -> bool:
    """Whether a wheel for these platforms runs with a C library, such as ``glibc 2.31``."""
    name, _, version = libc.partition(" ")
    for platform in platforms.split("."):
        for legacy, modern in _LEGACY.items():
            platform = platform.replace(f"{legacy}_", f"{modern}_")
        match = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", platform)
        if name == "glibc" and match and match[3] == arch:
            have = tuple(int(part) for part in version.split("."))
            if (int(match[1]), int(match[2])) <= have:
                return True
    return False


def _contents(path: str) -> bytes:
    """Return a line that lists the members of a wheel, and these as they are compressed in it."""
    import zipfile

    listed, data = [], []
    with zipfile.ZipFile(path) as wheel, open(path, "rb") as file:
        for entry in wheel.infolist():
            if entry.filename.endswith(".py") or ".so" in entry.filename:
                file.seek(entry.header_offset + _LOCAL_NAME_SIZE_AT)
                file.seek(sum(struct.unpack("<2H", file.read(4))), os.SEEK_CUR)
                data.append(file.read(entry.compress_size))
                listed.append((entry.filename, entry.compress_size, entry.compress_type == zipfile.ZIP_DEFLATED))
    return repr(listed).encode() + b"\n" + b"".join(data)


if __name__ == "__main__":
    main()
