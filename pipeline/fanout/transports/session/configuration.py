"""The configuration file that is generated for ssh: our rules, the text of the account's file, our defaults."""

import os
import pwd
import re
import shlex
from collections.abc import Container
from typing import Any

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


def applicable_rules(known_names: Container[str], share: bool) -> dict[str, str]:
    """Return the names and values of options that must hold.

    :param known_names: the lower-case names of the options that this ssh has.
    :param share: whether to use the connection of a running master (ControlPath).
    """
    newer_rules = {name: value for name, value in _NEWER_RULES.items() if name.lower() in known_names}
    return {**_RULES, **newer_rules} if share else {**_RULES, **newer_rules, "ControlPath": "none"}


def generate(rules: dict[str, str], config: str | None, defaults: dict[str, str]) -> str:
    """Return the path of a configuration file: rules, the text of `config` or of the account, defaults.

    It is not in the file system, and goes with this process. The texts are copied rather than included: ssh checks the
    owner of a file for Include but not of one for -F, and a path with spaces cannot be passed to a jump host's ssh.
    """
    if config is None:
        home = pwd.getpwuid(os.getuid()).pw_dir
        texts = [_read(os.path.join(home, ".ssh/config")), _system_config()]
    else:
        texts = [b"" if config.lower() == "none" else _read(config)]
    parts = [_lines(rules), *texts, _lines(defaults)]
    with os.fdopen(os.memfd_create("ssh_config"), "wb", closefd=False) as file:
        file.write(b"\nHost *\n".join([b"", *parts]))
        return f"/proc/{os.getpid()}/fd/{file.fileno()}"


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
