"""How Ansible reaches a host and becomes root there, from the host's variables and Ansible's settings.

What cannot be used refuses that host alone, with a reason that names the variable.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.common.text import quote
from pipeline.inventory import destination, interpreter, ssh_arguments
from pipeline.inventory.destination import Destination
from pipeline.inventory.ssh_arguments import Option

# Variables by what they say, as Ansible's plugins name them. Of several, the last one that a host has counts; those of
# paramiko only where that is the connection.
VARIABLES = {
    "connection": ("ansible_connection",),
    "shell_type": ("ansible_shell_type",),
    "host": ("ansible_host", "ansible_ssh_host", "ansible_paramiko_host"),
    "user": ("ansible_user", "ansible_ssh_user", "ansible_paramiko_user"),
    "port": ("ansible_port", "ansible_ssh_port", "ansible_paramiko_port"),
    "private_key_file": (
        *("ansible_private_key_file", "ansible_ssh_private_key_file"),
        "ansible_paramiko_private_key_file",
    ),
    "host_key_checking": (
        *("ansible_host_key_checking", "ansible_ssh_host_key_checking"),
        "ansible_paramiko_host_key_checking",
    ),
    "timeout": ("ansible_timeout", "ansible_ssh_timeout", "ansible_paramiko_timeout"),
    "pkcs11_provider": ("ansible_ssh_pkcs11_provider",),
    "proxy_command": ("ansible_paramiko_proxy_command",),
    "ssh_executable": ("ansible_ssh_executable",),
    "ssh_args": ("ansible_ssh_args",),
    "ssh_common_args": ("ansible_ssh_common_args",),
    "ssh_extra_args": ("ansible_ssh_extra_args",),
    "become": ("ansible_become",),
    "become_method": ("ansible_become_method",),
    "become_user": ("ansible_become_user", "ansible_sudo_user"),
    "become_exe": ("ansible_become_exe", "ansible_sudo_exe"),
    "become_flags": ("ansible_become_flags", "ansible_sudo_flags"),
    "python": ("ansible_python_interpreter",),
}
ALL_VARIABLES = [name for names in VARIABLES.values() for name in names]

# Settings of ansible.cfg and the environment by what they say, where a host has no variable for it.
_SETTINGS = {
    "connection": "DEFAULT_TRANSPORT",
    "user": "remote_user",
    "become": "DEFAULT_BECOME",
    "become_method": "DEFAULT_BECOME_METHOD",
    "become_user": "DEFAULT_BECOME_USER",
    "become_exe": "DEFAULT_BECOME_EXE",
    "become_flags": "DEFAULT_BECOME_FLAGS",
    "python": "INTERPRETER_PYTHON",
}
# Ansible's own values of settings. Where ssh has one of its own (in ~/.ssh/config), that one is better.
_DEFAULTS = {"timeout": 10, "ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s"}

_PARAMIKO = {"paramiko", "paramiko_ssh"}
_OVER_SSH = {"ssh", "smart"} | _PARAMIKO
_BUILTIN = re.compile(r"ansible\.(builtin|legacy)\.")
_PLUGIN = re.compile(r"[A-Za-z0-9_.]+")
# Flags of sudo that change neither the account nor the command: environment, prompt, no question, login shell.
_HARMLESS_SUDO_FLAGS = re.compile(r"(\s*-[HSnEi]+)*\s*")
_FLAGS = {"true": True, "yes": True, "on": True, "y": True, "t": True, "1": True, "1.0": True}
_FLAGS |= {"false": False, "no": False, "off": False, "n": False, "f": False, "0": False, "0.0": False}


class UnusableError(Exception):
    """A host cannot be audited; the message is the reason, and what helps.

    :ivar reason: without what helps, which may name the host.
    :ivar connection: the connection that is not ssh, or None.
    """

    def __init__(self, reason: str, connection: str | None = None, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.connection = connection


class Connection(NamedTuple):
    """How a host is reached; destination: None for this machine, the others: as in a target."""

    destination: Destination | None
    become: bool = False
    python: str | None = None
    ssh_config: str | None = None
    ssh_args: tuple[str, ...] = ()


class Variables:
    """Variables of one host, completed by Ansible's settings. Only those that are asked for are read.

    :param values: by name.
    :param completed: names of those that were templates or encrypted: they may show what should stay secret.
    :param reasons: why others still are, and what helps, by name.
    :param settings: by name.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        completed: Collection[str],
        reasons: Mapping[str, tuple[str, str]],
        settings: Mapping[str, Any],
    ) -> None:
        self._values = values
        self._completed = completed
        self._reasons = reasons
        self._settings = settings

    def without(self, prefix: str) -> Variables:
        """Return the variables without those whose names start with a prefix."""
        values = {name: value for name, value in self._values.items() if not name.startswith(prefix)}
        return Variables(values, self._completed, self._reasons, self._settings)

    def text(self, name: str) -> str | None:
        """Return a variable as text, None if it is missing or empty.

        :raises UnusableError: it is neither text nor a number.
        """
        if name in self._reasons:
            reason, remedy = self._reasons[name]
            raise UnusableError(f"{name} {reason}", remedy=remedy)
        value = self._values.get(name)
        if isinstance(value, dict):  # from a source that Ansible does not trust
            value = value.get("__ansible_unsafe", value)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, (str, int, float)):
            raise UnusableError(f"{name} must be text, not a list or a mapping")
        return str(value)

    def option(self, option: str, check: Callable[[str], object]) -> str | None:
        """Return the text of an option of VARIABLES that passes a check, None without one.

        :param check: raises ValueError with the reason.
        :raises UnusableError: the text is not valid; the reason quotes none that may be secret.
        """
        names = [name for name in VARIABLES[option] if self._values.get(name) is not None]
        if names:
            name, text = names[-1], self.text(names[-1])
        else:
            name = _SETTINGS.get(option, option)
            setting = self._settings.get(name)
            text = None if setting in (None, "", _DEFAULTS.get(option)) else str(setting)
            name = f"{name} in Ansible's configuration"
        if text is None:
            return None
        try:
            check(text)
        except ValueError as error:
            problem = "what Ansible fills in cannot be used" if name in self._completed else error
            raise UnusableError(f"{name}: {problem}") from None
        return text


def connect(host_name: str, variables: Variables) -> Connection:
    """Return how a host is reached.

    :raises UnusableError: it is not reached by ssh, or a value cannot be used.
    """
    connection = variables.option("connection", _check_plugin) or "ssh"
    name = _BUILTIN.sub("", connection)
    if name == "local":
        return Connection(None)
    if name not in _OVER_SSH:
        raise UnusableError(f"ansible_connection is {connection}: not reached by ssh", name.rpartition(".")[2])
    if name not in _PARAMIKO:
        variables = variables.without("ansible_paramiko_")
    variables.option("shell_type", _check_shell)
    become = variables.option("become", _flag)
    if become and _flag(become):
        for option, check in _BECOME_CHECKS.items():
            variables.option(option, check)
    host = variables.option("host", destination.check_host)
    if host is None:
        try:
            destination.check_host(host_name)
        except ValueError as error:
            raise UnusableError(f"no ansible_host, and the name of the host: {error}") from None
    python = variables.option("python", _check_python)
    route = ssh_arguments.route(_ssh_options(variables))
    return Connection(
        Destination(host or host_name, route.user, route.port),
        bool(become and _flag(become)),
        None if python and python.startswith("auto") else python,
        route.config,
        route.words,
    )


def _ssh_options(variables: Variables) -> Iterator[Option]:
    """Yield ssh's options in Ansible's order, since ssh takes the first value of an option."""
    variables.option("ssh_executable", _check_ssh)
    if provider := variables.option("pkcs11_provider", _check_path):
        yield _file("PKCS11Provider", provider)
    if command := variables.option("proxy_command", _check_command):
        yield Option("ProxyCommand", command)
    yield from _arguments(variables, "ssh_args")
    checking = variables.option("host_key_checking", _flag)
    if checking and not _flag(checking):
        yield Option("StrictHostKeyChecking", "no")
    if port := variables.option("port", destination.check_port):
        yield Option("Port", port)
    if key := variables.option("private_key_file", _check_path):
        # Unlike -i, this counts also where the file is missing: keys of the account are then no substitute.
        yield _file("IdentityFile", key)
    if user := variables.option("user", destination.check_user):
        yield Option("User", user)
    if timeout := variables.option("timeout", _check_seconds):
        yield Option("ConnectTimeout", timeout)
    yield from _arguments(variables, "ssh_common_args")
    yield from _arguments(variables, "ssh_extra_args")


def _arguments(variables: Variables, option: str) -> Iterable[Option]:
    return ssh_arguments.parse(variables.option(option, _check_arguments) or "")


def _file(keyword: str, path: str) -> Option:
    return ssh_arguments.file_option(keyword, shlex.quote(os.path.expanduser(path)))


def _check_arguments(text: str) -> None:
    for _ in ssh_arguments.parse(text):
        pass


def _check_command(text: str) -> None:
    if not text.isprintable():
        raise ValueError("unprintable characters")


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"expected true or false, not {quote(text)}")
    return _FLAGS[text.lower()]


def _check_printable(text: str) -> None:
    if not text.isprintable():
        raise ValueError(f"unprintable characters in {quote(text)}")


def _check_path(text: str) -> None:
    _check_printable(text)
    if '"' in text:
        raise ValueError(f"a quotation mark in {quote(text)}, which ssh does not take")


def _check_plugin(text: str) -> None:
    if not _PLUGIN.fullmatch(text):
        raise ValueError(f"{quote(text)} is not the name of a plugin")


def _check_shell(text: str) -> None:
    if text in ("powershell", "cmd"):
        raise ValueError(f"{text} is a shell of Windows")


def _check_python(text: str) -> None:
    _check_printable(text)
    interpreter.parse(text)


def _check_seconds(text: str) -> None:
    if not re.fullmatch("[0-9]{1,5}", text):
        raise ValueError(f"expected seconds, not {quote(text)}")


def _check_ssh(text: str) -> None:
    if os.path.basename(text) != "ssh":
        raise ValueError(f"only ssh itself is run, not {quote(text)}")


def _check_become_method(text: str) -> None:
    if _BUILTIN.sub("", text) != "sudo":
        raise ValueError(f"only sudo is known, not {quote(text)}")


def _check_become_user(text: str) -> None:
    if text != "root":
        raise ValueError(f"the collector needs root, not {quote(text)}")


def _check_become_exe(text: str) -> None:
    if os.path.basename(text) != "sudo":
        raise ValueError(f"only sudo is run, not {quote(text)}")


def _check_become_flags(text: str) -> None:
    if not _HARMLESS_SUDO_FLAGS.fullmatch(text):
        raise ValueError(f"the collector runs through sudo -n alone, not with {quote(text)}")


_BECOME_CHECKS = {
    "become_method": _check_become_method,
    "become_user": _check_become_user,
    "become_exe": _check_become_exe,
    "become_flags": _check_become_flags,
}
