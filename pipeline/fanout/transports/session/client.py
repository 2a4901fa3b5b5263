"""ssh on this machine: its settings for a host (`ssh -G`), its arguments, and how its processes are started."""

import ctypes
import os
import pwd
import re
import signal
import subprocess

from . import configuration
from .denials import Jump
from .failures import SessionError, quote

ERROR_EXIT_CODE = 255
"""Exit code of ssh for errors of its own, but also that of a command which exits with it."""

_CONNECT_TIMEOUT_S = 10
_PROXIED_CONNECT_TIMEOUT_S = 30  # two logins or more, or a proxy of a cloud that starts a tunnel
_ALIVE_INTERVAL_S = 15  # a host that is silent for three of them is lost
_SETTINGS_TIMEOUT_S = 30  # of `ssh -G`, which runs the commands of `Match exec`
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

# What decides a login besides user and address.
_LOGIN_SETTINGS = ("identityfile", "identitiesonly", "identityagent", "certificatefile", "pkcs11provider")
# A ProxyCommand that is ssh, one that runs it somehow, and what one has for the address of the host.
_RUNS_SSH = re.compile(r"((?:exec )?(?:\S*/)?ssh) ")
_NAMES_SSH = re.compile(r"\bssh\b")
_FORWARDED_ADDRESS = re.compile(r"\[?%h\]?[: ]%p")


class Client:
    """ssh, with its configuration for a host as `ssh -G` tells it.

    :param options: options of ssh, without -F.
    :param config: path of a configuration file instead of the account's and the system's, or ``none``.
    :ivar proxy: what the host is reached through, for an error, or None.
    :ivar jump: the same for comparison with others, or None.
    :ivar is_through_ssh: whether another ssh connects to the host or to the jump host before it.
    :raises SessionError: ssh cannot run here.
    """

    def __init__(self, host: str, options: list[str], config: str | None) -> None:
        self._host = host
        self._options = options
        self._config = config
        self._settings = settings(host, options, config)
        self.jump: Jump | None = None
        self.proxy: str | None = None
        jump_settings = {}
        self._proxy_command = self._settings.get("proxycommand")
        if "proxyjump" in self._settings:
            jump_settings = settings(f"ssh://{self._settings['proxyjump'].rpartition(',')[2]}", [], config)
            address = "{hostname}:{port}".format_map(jump_settings)
            account = f"{jump_settings['user']}@{address}"
            self.jump = Jump(address, "\n".join([account, *(jump_settings.get(name, "") for name in _LOGIN_SETTINGS)]))
            self.proxy = f"the jump host {account}"
        elif self._proxy_command:
            self.proxy = "its ProxyCommand"
            if "%" not in _FORWARDED_ADDRESS.sub("", self._proxy_command):
                self.jump = Jump(self._proxy_command.rpartition("@")[2], self._proxy_command)
        self.is_through_ssh = "proxyjump" in self._settings or _NAMES_SSH.search(self._proxy_command or "") is not None
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
        rules = configuration.applicable_rules(self._settings, share)
        file_rules = rules if "LogVerbose" in rules else {name: rules[name] for name in rules if name != "LogLevel"}
        arguments = ["ssh", "-F", configuration.generate(file_rules, self._config, self._defaults())]
        arguments += [f"-o{name}={value}" for name, value in rules.items()]
        if self._proxy_command and _RUNS_SSH.match(self._proxy_command):
            file = configuration.generate(file_rules, None, self._defaults())
            proxy_command = _RUNS_SSH.sub(rf"\1 -F {file} ", self._proxy_command, count=1)
            arguments.append(f"-oProxyCommand={proxy_command}")
        # Of an option that is given twice with -o, the first counts.
        return [*arguments, *self._options, "-T", "-a", "-x", "--", self._host, command_line]

    def _defaults(self) -> dict[str, str]:
        """Return our values of options that are at those of ssh itself."""
        defaults = {}
        if self._settings.get("connecttimeout") == "none":
            defaults["ConnectTimeout"] = str(self._default_timeout_s)
        if self._settings.get("serveraliveinterval") == "0":
            defaults["ServerAliveInterval"] = str(_ALIVE_INTERVAL_S)
        return defaults


def settings(host: str, options: list[str], config: str | None, is_apart: bool = False) -> dict[str, str]:
    """Return what `ssh -G` prints: the lower-case names and values of ssh's options for a host.

    Several values of an option are the lines of one.

    :param is_apart: whether to start it in a session of its own, so that a `Match exec` that hangs ends with it; the
        runner ends all processes of its child itself.
    :raises SessionError: ssh cannot run here, or rejects its configuration, or does not tell it in time.
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
        process = subprocess.Popen(
            ["ssh", "-G", *file, *options, "--", host],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=die_with_parent,
            start_new_session=is_apart,
        )
        with process:
            try:
                stdout, stderr = process.communicate(timeout=_SETTINGS_TIMEOUT_S)
            except BaseException:
                if is_apart:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                raise
    except subprocess.TimeoutExpired:
        text = f"ssh -G {host} takes more than {_SETTINGS_TIMEOUT_S} s on {node}: does a command of Match exec hang?"
        raise SessionError("unreachable", "ConfigTimeout", text) from None
    except OSError as error:
        text = f"cannot run ssh on {node} to reach {host}: {error.strerror}; install OpenSSH's client"
        raise SessionError("denied", "NoSsh", text) from error
    if process.returncode:
        text = f"ssh on {node} rejects its configuration for {host}"
        raise SessionError("unreachable", "ConfigError", text + quote(stderr.decode(errors="replace")))
    values: dict[str, str] = {}
    for line in stdout.decode("utf-8", "surrogateescape").split("\n"):
        name, _, value = line.partition(" ")
        values[name] = f"{values[name]}\n{value}" if name in values else value
    return values


def environment() -> dict[str, str]:
    """Return the environment of ssh, whose words failures.py knows in English."""
    return {**os.environ, "LC_ALL": "C"}


def die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
