"""A host that the system's OpenSSH reaches: its own kernel, or a core or guest that it sees.

Keys, jump hosts and the policy on host keys are those of the account that collects. Nothing is installed on the
host: the collector goes over stdin and stays in memory.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from pipeline.fanout.transports import payload, session
from pipeline.fanout.transports.command import Command, TargetError, arguments
from pipeline.inventory import Target, destination

_CONNECT_TIMEOUT_S = 10
_ALIVE_S, _ALIVE_COUNT = 15, 3  # a host that says nothing for 45 s is lost


def command(target: Target) -> Command:
    """Return the child that reaches the host.

    :raises TargetError: the destination may be something else to ssh than a name.
    """
    try:
        to = destination.parse((target.via or target.source).removeprefix("ssh:"))
    except ValueError as error:
        raise TargetError(str(error)) from error
    seen_there = replace(target, source="live:") if target.kind == "ssh" else target
    header = {
        "argv": argv(to, target.ssh_config, payload.command_line(target.python, target.become)),
        "args": arguments(seen_there),
        "starts": payload.STARTS,
        "bootstrap_bytes": len(payload.bootstrap()),
        "user": to.user,
        "python": target.python,
        "drgn_wheels": target.drgn_wheels,
    }
    stdin = json.dumps(header).encode() + b"\n" + payload.bootstrap() + payload.sources()
    return Command([sys.executable, "-IS", session.__file__], stdin=stdin, host=to.host)


def argv(to: destination.Destination, ssh_config: str | None, command_line: str) -> list[str]:
    """Return the command line of ssh: never a question, no agent, no terminal, and no end without notice."""
    options = [
        *("-T", "-a", "-x", "-oClearAllForwardings=yes", "-oRemoteCommand=none"),
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
