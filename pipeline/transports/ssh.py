"""A host that the system's OpenSSH reaches: its own kernel, or a core or guest that it sees.

Keys, jump hosts and the policy on host keys are those of the account that collects. Nothing is installed on the
host: the collector goes over stdin and stays in memory.
"""

from __future__ import annotations

import json
import re
import sys
from typing import NamedTuple

from pipeline.inventory import Target
from pipeline.transports import payload, session
from pipeline.transports.command import Command, TargetError, arguments

_CONNECT_TIMEOUT_S = 10
_ALIVE_S, _ALIVE_COUNT = 15, 3  # a host that says nothing for 45 s is lost

# What neither ssh, nor a shell in a ProxyCommand of its configuration, can take for anything but a name.
_DESTINATION = re.compile(r"ssh:(?:([\w.][\w.@\\+-]*\$?)@)?(\[[\w:.%]+\]|\w[\w.%-]*)(?::(\d{1,5}))?")


class Destination(NamedTuple):
    user: str | None
    host: str
    port: int | None


def destination(text: str) -> Destination:
    """Take ``ssh:[USER@]HOST[:PORT]`` apart; an IPv6 address is in brackets where a port follows or not.

    :raises TargetError:
    """
    match = _DESTINATION.fullmatch(text)
    if match is None or (match[3] and not 0 < int(match[3]) < 1 << 16):
        raise TargetError(f"{text} is not ssh:[USER@]HOST[:PORT]")
    return Destination(match[1], match[2].strip("[]"), int(match[3]) if match[3] else None)


def command(target: Target) -> Command:
    to = destination(target.via or target.source)
    header = {
        "argv": argv(to, target.ssh_config, payload.command_line(target.python, target.become)),
        "args": arguments(target, "live:" if target.kind == "ssh" else target.source),
        "starts": payload.STARTS,
        "bootstrap_bytes": len(payload.bootstrap()),
        "user": to.user,
        "python": target.python,
        "drgn_wheels": target.drgn_wheels,
    }
    stdin = json.dumps(header).encode() + b"\n" + payload.bootstrap() + payload.sources()
    return Command([sys.executable, "-IS", session.__file__], stdin=stdin, host=to.host)


def argv(to: Destination, ssh_config: str | None, command_line: str) -> list[str]:
    """Return the command line of ssh: never a question, no agent, no terminal, and no end without notice."""
    options = [
        *("-T", "-a", "-x"),
        "-oBatchMode=yes",
        f"-oConnectTimeout={_CONNECT_TIMEOUT_S}",
        f"-oServerAliveInterval={_ALIVE_S}",
        f"-oServerAliveCountMax={_ALIVE_COUNT}",
        "-oLogLevel=ERROR",  # without the banner, which may say anything
    ]
    options += ["-F", ssh_config] if ssh_config is not None else []
    options += ["-p", str(to.port)] if to.port is not None else []
    options += ["-l", to.user] if to.user is not None else []
    return ["ssh", *options, "--", to.host, command_line]
