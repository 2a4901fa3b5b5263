"""The child process that audits a host over ssh: sends the collector, forwards its output and explains failures.

The runner starts it by path with `python -IS`, so it imports nothing of the project. It retries a connection that is
closed before the login: sshd drops some of many simultaneous connections (MaxStartups), and locks out addresses with
failed logins (PerSourcePenalties). It does not retry a connection that is lost after the login, but exits with
CONNECTION_LOST_EXIT_CODE: the driver then starts a new attempt.

It may send a Python first: the host's shell then asks for it on stderr, unpacks it, starts it and removes it.

stdin: a line of JSON, then the bootstrap, then the sources of the collector.
"""

import ctypes
import json
import math
import os
import pwd
import queue
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

CONNECTION_LOST_EXIT_CODE = 75
"""Exit code of this program where the connection was lost after the login."""
STDERR_SEPARATOR = "; stderr: "
"""Separates an error of ours from the line of stderr that it quotes, which is untrusted and may hold any name."""

# Seconds between tries, each multiplied by a random factor from 0.5 to 1.5. A login of others that makes sshd drop a
# connection (MaxStartups) ends within seconds; a penalty for failed logins lasts 15 s to 10 min (PerSourcePenalties).
_RETRY_DELAYS_S = (1, 2, 4)
_PENALTY_DELAYS_S = (15, 30, *[60] * 8)
_MAX_DENIALS = 3  # by a jump host, after which no further target knocks there: each denial adds to the penalty
_CONNECT_TIMEOUT_S = 10
_PROXIED_CONNECT_TIMEOUT_S = 30  # two logins or more, or a proxy of a cloud that starts a tunnel
_ALIVE_INTERVAL_S = 15  # a host that is silent for three of them is lost
_SHARED_LOGIN_S = 20  # beyond ConnectTimeout, for the login over a connection that another ssh holds
_SETTINGS_TIMEOUT_S = 30  # of `ssh -G`, which runs the commands of `Match exec`
_HEARTBEAT_S = 20  # collector/remote.py exits after 90 s of silence
_MAX_QUOTE_CHARACTERS = 300  # of stderr in an error, of which the runner keeps 500
_SSH_ERROR_EXIT_CODE = 255
_NOT_FOUND_EXIT_CODE = 127
# Signals that kill a collector. An exit code of 128 + any other signal comes from ssh or the host's shell.
_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS}
_PR_SET_PDEATHSIG = 1

# What must hold for ssh and for the ssh of its jump host: no prompts, no agent, no terminal, no connection that others
# share and that ends with this target, nothing else that people configure for their own logins.
_RULES = {
    "BatchMode": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "Tunnel": "no",
    "LogLevel": "ERROR",  # omits the banner, which is arbitrary text
}
# The same for newer releases: an older ssh, which leaves them out of `ssh -G`, would refuse them.
_NEWER_RULES = {
    "SessionType": "default",  # OpenSSH 8.7
    "StdinNull": "no",
    "ForkAfterAuthentication": "no",
    "LogVerbose": "*:kex_exchange_identification():*,*:channel_input_open_failure():*",  # 8.5; why a server refuses
}
_SYSTEM_CONFIGS = ("/etc/ssh/ssh_config", "/usr/etc/ssh/ssh_config")  # the second is openSUSE's
_INCLUDE = re.compile(rb"^(\s*include(?:\s+|\s*=\s*))(.+)$", re.IGNORECASE | re.MULTILINE)
# The prefix of a line that LogVerbose has ssh print, and the one debug message of interest.
_VERBOSE = re.compile(rb"(debug\d: )?[\w.]+:(\w+)\(\):\d+ \([^)]*\): ")
_SERVER_SAYS = re.compile(rb"banner line \d+: ")
# A ProxyCommand that runs ssh, and one that reaches all hosts through the same machine.
_RUNS_SSH = re.compile(r"((?:exec )?(?:\S*/)?ssh) ")
_FORWARDED_ADDRESS = re.compile(r"\[?%h\]?[: ]%p")

# Stands for a stderr without a word.
_SILENT_END = "Connection closed by the host"
# Pattern in ssh's stderr, status, error_type and explanation; the first match counts. Status None: retry.
_SSH_ERRORS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "denied", "HostKeyChanged",
     "the host key is not the one in known_hosts: find out why, then ssh-keygen -R and ssh-keyscan"),
    (r"Host key verification failed|host key is known for", "denied", "HostKeyUnknown",
     "add the host key to known_hosts, with ssh-keyscan, and check its fingerprint"),
    (r"@.*: Permission denied \(|Too many authentication failures|No more authentication methods", "denied",
     "AuthenticationFailed",
     "no key of this account is accepted there: check authorized_keys, the agent and the user name"),
    (r"open failed: administratively prohibited", "denied", "ForwardingRefused",
     "the jump host forwards no connection to it: AllowTcpForwarding and PermitOpen in its sshd_config"),
    (r"Could not resolve hostname|open failed: .*(Name or service not known|in name resolution)", "unreachable",
     "NameNotResolved", "the resolver does not know the host name"),
    (r"Connection refused", "unreachable", "ConnectionRefused", "nothing listens on its port"),
    (r"No route to host|Network is unreachable", "unreachable", "NoRoute", "there is no route to it"),
    (r"open failed: .*timed out", "unreachable", "ConnectTimeout", "it does not answer the jump host"),
    (r"timed out", "unreachable", "ConnectTimeout",
     "no answer within CONNECT_TIMEOUT_S s (ConnectTimeout; set it in ssh's configuration for this host)"),
    (r"[Cc]onfiguration option|config file|Bad owner|argument|keyword", "unreachable", "ConfigError",
     "ssh rejects its configuration"),
    (r"Exceeded MaxStartups", None, "ConnectionClosed",
     "sshd takes no more connections at a time: raise MaxStartups in sshd_config or lower --ssh-parallel"),
    (r"Not allowed at this time", None, "ConnectionRejected",
     "sshd has too many connections at a time (raise MaxStartups or lower --ssh-parallel), or locks out this address "
     "after failed logins (PerSourcePenalties): see its log"),
    (_SILENT_END, None, "ConnectionClosed",
     "closed during the login: the account may be expired or locked there, or sshd has too many connections at a time "
     "(raise MaxStartups in sshd_config or lower --ssh-parallel): see its log"),
    (r"exchange_identification|Connection (closed|reset) by|banner exchange", None, "ConnectionClosed",
     "perhaps too many connections at a time (raise MaxStartups in sshd_config or lower --ssh-parallel), or a lock-out "
     "of this address after failed logins (PerSourcePenalties, fail2ban): see sshd's log"),
)  # fmt: skip
# What ssh prints last where a connection ends after the login.
_LOST = re.compile(
    r"^(Connection to \S+ closed by remote host\.|Read from remote host .*|Timeout, server .*|client_loop: .*)\s*\Z",
    re.MULTILINE,
)
# What a proxied ssh prints last when its proxy has ended: an error before it is the proxy's.
_PROXY_ENDED = re.compile("exchange_identification: (read: )?Connection")
# Where Python and not sudo has failed.
_PYTHON_ERRORS = re.compile(
    r"Fatal Python error|Python path configuration|Traceback \(most recent|can't open file|ModuleNotFoundError"
    r"|error while loading shared libraries|cannot execute binary file|Exec format error"
)
# Pattern in the stderr of sudo, sudo-rs or doas, and the remedy, with the user's name and the interpreter's path.
_SUDO_REMEDIES = (
    (r"must have a tty", "add the line Defaults:{user} !requiretty to the host's sudoers"),
    (r"expired|validation failure|account management", "the account {user} is expired or locked there"),
    (r"no new privileges|nosuid|effective uid|setuid bit",
     "sudo cannot become root there: a container without new privileges, or a file system mounted nosuid"),
    (r"password|[Aa]uthenticat|[Ii]nteraction is required|not allowed to|may not run|not in the sudoers|I'm afraid",
     "add the line {user} ALL=(root) NOPASSWD: {interpreter} to the host's sudoers"),
    (r"sudo: not found", "sudo is not installed on the host: log in as root"),
)  # fmt: skip


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

# Reasons of the host's shell (transports/payload.py) against the Python that would be sent: error_type and explanation.
_REFUSALS = {
    "tool": ("NoTool", "the host has no Python, and no {detail} to unpack one"),
    "arch": ("OtherArchitecture", "the host has no Python; it is {detail}, and --ship-python has {python}"),
    "loader": ("OtherLibrary", "the host has no Python, and no {loader} for that of --ship-python (musl, 32 bits?)"),
    "place": ("NoRoom", "the host has no Python; none of TMPDIR or /tmp, /var/tmp, /dev/shm, /run and the home folder "
              "has {mib} MiB for one, is writable and not noexec"),
    "unpacking": ("NotUnpacked", "the Python of --ship-python cannot be unpacked in {detail}"),
    "start": ("NotStarted", "{python} of --ship-python does not start on the host"),
}  # fmt: skip

_QUOTED_REFUSALS = ("unpacking", "start")  # those that other programs on the host explain
_BLOCK_BYTES = 1 << 16

_LIBC = ctypes.CDLL(None)


class SessionError(Exception):
    """The reason for a missing snapshot.

    :param status: a status of the collector, or None if a retry may succeed.
    :param is_of_proxy: whether the jump host, or what else ProxyCommand connects through, has failed.
    """

    def __init__(self, status: str | None, error_type: str, text: str, is_of_proxy: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.error_type = error_type
        self.is_of_proxy = is_of_proxy


class Client:
    """ssh, with its configuration for a host as `ssh -G` tells it.

    :param options: options of ssh, without -F.
    :param config: path of a configuration file instead of the account's and the system's, or ``none``.
    :ivar proxy: what the host is reached through, for an error, or None.
    :ivar jump: the same for comparison with others: a jump host as ``USER@HOST:PORT``, a ProxyCommand, or None.
    :raises SessionError: ssh cannot run here.
    """

    def __init__(self, host: str, options: list[str], config: str | None) -> None:
        self._host = host
        self._options = options
        self._config = config
        self._settings = settings(host, options, config)
        self.jump = self.proxy = None
        jump_settings = {}
        self._proxy_command = self._settings.get("proxycommand")
        if "proxyjump" in self._settings:
            jump_settings = settings(f"ssh://{self._settings['proxyjump'].rpartition(',')[2]}", [], config)
            self.jump = "{user}@{hostname}:{port}".format_map(jump_settings)
            self.proxy = f"the jump host {self.jump}"
        elif self._proxy_command:
            self.proxy = "its ProxyCommand"
            if "%" not in _FORWARDED_ADDRESS.sub("", self._proxy_command):
                self.jump = self._proxy_command
        self.shares_connection = "controlpath" in self._settings or "controlpath" in jump_settings
        self._default_timeout_s = _PROXIED_CONNECT_TIMEOUT_S if self.proxy else _CONNECT_TIMEOUT_S
        timeout = self._settings.get("connecttimeout", "none")
        self.connect_timeout_s = int(timeout) if timeout.isdigit() else self._default_timeout_s

    @property
    def user(self) -> str:
        return self._settings["user"]

    def argv(self, command_line: str, share: bool) -> list[str]:
        """Return ssh's arguments.

        The ssh that is started for a jump host takes options from files only, and both need ours: they read a generated
        file, with the text of the account's own.

        :param share: whether to use the connection of a running master (ControlPath).
        """
        rules = {**_RULES, **{name: value for name, value in _NEWER_RULES.items() if name.lower() in self._settings}}
        if not share:
            rules["ControlPath"] = "none"
        file_rules = rules if "LogVerbose" in rules else {name: rules[name] for name in rules if name != "LogLevel"}
        arguments = ["ssh", "-F", self._generate(file_rules, self._config)]
        arguments += [f"-o{name}={value}" for name, value in rules.items()]
        if self._proxy_command and _RUNS_SSH.match(self._proxy_command):
            file = self._generate(file_rules, None)
            proxy_command = _RUNS_SSH.sub(rf"\1 -F {file} ", self._proxy_command, count=1)
            arguments.append(f"-oProxyCommand={proxy_command}")
        # Of an option with -o the first counts, of a letter the last.
        return [*arguments, *self._options, "-T", "-a", "-x", "--", self._host, command_line]

    def _generate(self, rules: dict[str, str], config: str | None) -> str:
        """Return the path of a configuration file: rules, the text of `config` or of the account, our defaults.

        It is not in the file system, and goes with this process. The texts are not included but copied, because ssh
        takes a file for -F, but not for Include, whoever owns it, and copied is never a path with spaces.
        """
        if config is None:
            home = pwd.getpwuid(os.getuid()).pw_dir
            texts = [_read(os.path.join(home, ".ssh/config")), _system_config()]
        else:
            texts = [b"" if config.lower() == "none" else _read(config)]
        defaults = {}
        if self._settings.get("connecttimeout") == "none":
            defaults["ConnectTimeout"] = str(self._default_timeout_s)
        if self._settings.get("serveraliveinterval") == "0":
            defaults["ServerAliveInterval"] = str(_ALIVE_INTERVAL_S)
        parts = [_lines(rules), *texts, _lines(defaults)]
        with os.fdopen(os.memfd_create("ssh_config"), "wb", closefd=False) as file:
            file.write(b"\nHost *\n".join([b"", *parts]))
            return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def settings(host: str, options: list[str], config: str | None) -> dict[str, str]:
    """Return what `ssh -G` prints: the lower-case names and values of ssh's options for a host.

    :raises SessionError: ssh cannot run here, or rejects its configuration.
    """
    node = os.uname().nodename
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        text = (
            f"uid {os.getuid()} has no entry in the password database of {node}, which ssh needs to reach {host}; give "
            "it one (on OpenShift: an entrypoint that adds it to a group-writable /etc/passwd, or nss_wrapper)"
        )
        raise SessionError("denied", "NoAccount", text) from None
    file = [] if config is None else ["-F", config]
    try:
        result = subprocess.run(
            ["ssh", "-G", *file, *options, "--", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SETTINGS_TIMEOUT_S,
            env=_environment(),
            preexec_fn=_die_with_parent,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"ssh -G {host} takes more than {_SETTINGS_TIMEOUT_S} s on {node}: does a command of Match exec hang?"
        raise SessionError("unreachable", "ConfigError", text) from None
    except OSError as error:
        text = f"cannot run ssh on {node} to reach {host}: {error.strerror}; install OpenSSH's client"
        raise SessionError("denied", "NoSsh", text) from error
    if result.returncode:
        text = f"ssh on {node} rejects its configuration for {host}"
        raise SessionError("unreachable", "ConfigError", text + _quote(result.stderr.decode(errors="replace")))
    lines = result.stdout.decode("utf-8", "surrogateescape").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _lines(rules: dict[str, str]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in rules.items()).encode()


def _read(path: str) -> bytes:
    """Return the contents of a file, or nothing if ssh ignores it as well: `ssh -G` has refused all others."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _system_config() -> bytes:
    """Return the system's configuration, with Include relative to its own directory rather than to ~/.ssh."""
    path = next(filter(os.path.exists, _SYSTEM_CONFIGS), _SYSTEM_CONFIGS[0])

    def anchor(match: Any) -> bytes:
        patterns = [os.path.join(os.path.dirname(path), pattern) for pattern in shlex.split(os.fsdecode(match[2]))]
        return bytes(match[1]) + os.fsencode(" ".join(f'"{pattern}"' for pattern in patterns))

    return _INCLUDE.sub(anchor, _read(path))


class Denials:
    """Denials of jump hosts that the targets of this worker have met: lines of a file that its sessions share."""

    def __init__(self, path: str | None) -> None:
        self._path = path

    def add(self, jump: str) -> None:
        if self._path is not None:
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(jump).encode() + b"\n")

    def count(self, jump: str) -> int:
        """Return the number of denials for this user of a jump host."""
        return self._jumps().count(jump)

    def are_at(self, jump: str) -> bool:
        """Whether a jump host has denied anything, to whatever user: it may lock out this address."""
        return jump.rpartition("@")[2] in {other.rpartition("@")[2] for other in self._jumps()}

    def _jumps(self) -> list[str]:
        return [] if self._path is None else [json.loads(line) for line in _read(self._path).splitlines()]


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
        self._is_stuck = False
        self._process: Any = subprocess.Popen(
            client.argv(header["command_line"], share),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            preexec_fn=_die_with_parent,
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
            if not self._obey(line.decode(errors="replace")) and (line := _without_verbosity(line)):
                self._stderr += line
                del self._stderr[:-65536]
                os.write(2, line)

    def _obey(self, line: str) -> bool:
        """Do what a line with a marker of transports/payload.py says; return whether it is one."""
        if not self._has_begun and line.strip() == self._header["announcement"]:
            self._has_begun = True
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
        if self._is_stuck:
            text = f"no login over the shared connection of ssh's ControlPath{_quote(stderr_text)}"
            raise SessionError("unreachable", "ConnectTimeout", text)
        if code == _SSH_ERROR_EXIT_CODE and (self._has_shell or _LOST.search(stderr_text)):
            return
        if code == _SSH_ERROR_EXIT_CODE:
            raise _ssh_failure(stderr_text, self._client)
        if self._refusal is not None and code == _NOT_FOUND_EXIT_CODE:
            raise self._refused(*self._refusal, stderr_text)
        if not self._has_shell and code == _NOT_FOUND_EXIT_CODE:
            python = self._header["python"]
            names = shlex.split(python)[0] if python else "python3 or /usr/libexec/platform-python"
            text = f"no {names} on the host; install python3 and drgn, or name another python"
            raise SessionError("no_drgn", "NoInterpreter", text)
        if not self._has_shell and code:
            text = f"the login does not run commands (exit code {code}); is the account restricted or expired?"
            raise SessionError("denied", "NoShell", text + _quote(stderr_text))
        is_sudo_next = self._header["become"] and not self._has_begun
        if is_sudo_next and code and not _PYTHON_ERRORS.search(stderr_text):
            raise self._sudo_failure(code, stderr_text)
        if code not in (0, _SSH_ERROR_EXIT_CODE) and not self._has_begun and " " in (self._header["python"] or ""):
            text = f"{self._header['python']} did not start Python on the host (exit code {code})"
            raise SessionError("no_drgn", "NoInterpreter", text + _quote(stderr_text))

    def _refused(self, word: str, detail: str, stderr_text: str) -> SessionError:
        """Return the failure that a reason of the host's shell against the package stands for."""
        package: Any = self._package
        error_type, explanation = _REFUSALS.get(word, ("NotSent", "the host refuses the Python of --ship-python"))
        values = {"python": package["python"], "loader": package["loader"], "mib": package["disk_bytes"] >> 20}
        text = explanation.format(detail=detail, **values)
        return SessionError("no_drgn", error_type, text + (_quote(stderr_text) if word in _QUOTED_REFUSALS else ""))

    def _sudo_failure(self, code: int, stderr_text: str) -> SessionError:
        """Return the failure of a sudo that did not run the collector, whatever it says."""
        text = "sudo did not run the collector"
        if code - 128 in _CRASHES:
            text = f"sudo or {self._interpreter} was ended by {signal.Signals(code - 128).name}"
        # A Python that was sent has another path each time.
        command = self._interpreter if self._package_form is None else "ALL"
        for pattern, remedy in _SUDO_REMEDIES:
            if re.search(pattern, stderr_text):
                text += "; " + remedy.format(user=self._client.user, interpreter=command)
                break
        return SessionError("denied", "Sudo", text + (_quote(stderr_text) or f" (exit code {code}, without a word)"))


def main() -> None:
    start = time.monotonic()
    header = json.loads(sys.stdin.buffer.readline())
    bootstrap = sys.stdin.buffer.read(header["bootstrap_bytes"])
    sources = sys.stdin.buffer.read()
    memory_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    request = {
        "args": header["collector_args"],
        "sources_bytes": len(sources),
        "memory_bytes": memory_bytes if memory_bytes != resource.RLIM_INFINITY else None,
        "niceness": os.nice(0),
        "ship_drgn": header["drgn_wheels"] is not None,
    }
    payload = bootstrap + repr(request).encode() + b"\n" + sources
    try:
        code = _collect(header, payload, start + header["timeout_s"])
    except SessionError as failure:
        _fail(failure)
    if code == _SSH_ERROR_EXIT_CODE:
        sys.exit(CONNECTION_LOST_EXIT_CODE)
    if code - 128 in _CRASHES:
        os.kill(os.getpid(), code - 128)
    sys.exit(code if code != CONNECTION_LOST_EXIT_CODE else 1)


def _collect(header: dict[str, Any], payload: bytes, deadline: float) -> int:
    """Run the collector on the host; return the exit code as of `Connection.forward`.

    :param deadline: when the runner ends this process, of time.monotonic().
    :raises SessionError: the collector cannot run.
    """
    client = Client(header["host"], header["options"], header["config"])
    denials = Denials(header["denials"])
    share, tries = client.shares_connection, 0
    while True:
        if client.jump and (count := denials.count(client.jump)) >= _MAX_DENIALS:
            text = f"not tried: no key of this account is accepted by {client.proxy}, as {count} others through it"
            raise SessionError("denied", "AuthenticationFailed", text)
        try:
            login_timeout_s = client.connect_timeout_s + _SHARED_LOGIN_S if share else None
            connection = Connection(header, client, payload, share, login_timeout_s)
            code = connection.forward()
            connection.check(code)
            return code
        except SessionError as failure:
            if share and failure.error_type == "ConnectTimeout":
                share = False  # perhaps the master is stuck, or the network that its connection came through
                continue
            if client.jump and failure.is_of_proxy and failure.error_type == "AuthenticationFailed":
                denials.add(client.jump)
            if failure.status is not None:
                raise
            import random

            tries += 1
            delays_s = _delays_s(failure, client.jump is not None and denials.are_at(client.jump))
            delay_s = delays_s[tries - 1] * random.uniform(0.5, 1.5) if tries <= len(delays_s) else math.inf
            if time.monotonic() + delay_s >= deadline:
                text = f"closed in each of {tries} tries; {failure}"
                raise SessionError("unreachable", failure.error_type, text) from failure
            print(f"{failure}; tried again in {delay_s:.0f} s", file=sys.stderr, flush=True)
            time.sleep(delay_s)


def _delays_s(failure: SessionError, is_denier: bool) -> tuple[int, ...]:
    """Return the seconds to wait after each try that ends with this failure.

    :param is_denier: whether the jump host has denied others, so that it may have locked out this address.
    """
    if is_denier:
        return _PENALTY_DELAYS_S
    return _RETRY_DELAYS_S + (_PENALTY_DELAYS_S if failure.error_type == "ConnectionRejected" else ())


def _fail(failure: SessionError) -> NoReturn:
    """Print the failure as a frame, as the collector does, and exit."""
    error = {"status": failure.status or "unreachable", "error_type": failure.error_type, "error": str(failure)}
    print("\nlist-lru-audit snapshot 1")
    print(json.dumps({"error": error}), flush=True)
    os._exit(1)  # immediately, without waiting for ssh and the threads


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ssh_failure(stderr_text: str, client: Client) -> SessionError:
    """Return the failure that ssh's stderr stands for."""
    # With LogLevel=ERROR ssh prints nothing when the connection is closed during the key exchange or the login.
    stderr_text = stderr_text.strip() or _SILENT_END
    for pattern, status, error_type, explanation in _SSH_ERRORS:
        match = re.search(pattern, stderr_text)
        if match is not None:
            explanation = explanation.replace("CONNECT_TIMEOUT_S", str(client.connect_timeout_s))
            has_proxy_ended = client.proxy is not None and _PROXY_ENDED.search(stderr_text, match.end()) is not None
            is_of_proxy = has_proxy_ended and "open failed" not in stderr_text
            if is_of_proxy:
                explanation = f"{'by' if status == 'denied' else 'at'} {client.proxy}: {explanation}"
            return SessionError(status, error_type, explanation + _quote(stderr_text), is_of_proxy)
    return SessionError("unreachable", "SshFailed", f"ssh made no connection{_quote(stderr_text)}")


def _quote(stderr_text: str) -> str:
    """Return the lines of stderr as the suffix of an error, or nothing if there are none; of many the last."""
    lines = (line.strip("@ \t\r") for line in stderr_text.splitlines())
    quote = " / ".join(line for line in lines if line)
    if len(quote) > _MAX_QUOTE_CHARACTERS:
        quote = "... " + quote[-_MAX_QUOTE_CHARACTERS:]
    return quote and STDERR_SEPARATOR + quote


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
