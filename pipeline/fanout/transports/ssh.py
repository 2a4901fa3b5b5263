"""Transport over ssh: audits the kernel of a host, or a core or QEMU guest on that host.

Keys, jump hosts and the host key policy come from the OpenSSH configuration of the account that runs the audit.
Nothing is installed on the host: the collector is sent over stdin and stays in memory.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from pipeline.fanout.transports import payload, session
from pipeline.fanout.transports.command import Command, TargetError, arguments
from pipeline.inventory import Target, destination

_CONNECT_TIMEOUT_S = 10
_ALIVE_INTERVAL_S, _ALIVE_COUNT = 15, 3  # a host that is silent for 45 s is lost


def command(target: Target) -> Command:
    """Return the command that audits a target over ssh.

    :raises TargetError: the destination is invalid, so that ssh might take it for something else than a host name.
    """
    try:
        account = destination.parse((target.via or target.source).removeprefix("ssh:"))
    except ValueError as error:
        raise TargetError(str(error)) from error
    remote_target = replace(target, source="live:") if target.kind == "ssh" else target
    header = {
        "argv": argv(account, target.ssh_config, payload.command_line(target.python, target.become)),
        "collector_args": arguments(remote_target),
        "start_marker": payload.START_MARKER,
        "bootstrap_bytes": len(payload.bootstrap()),
        "user": account.user,
        "python": target.python,
        "drgn_wheels": target.drgn_wheels,
    }
    stdin = json.dumps(header).encode() + b"\n" + payload.bootstrap() + payload.sources()
    return Command([session.__file__], program=[sys.executable, "-IS"], stdin=stdin, host=account.host)


def argv(account: destination.Destination, ssh_config: str | None, command_line: str) -> list[str]:
    """Return ssh's command line: no prompts, no agent forwarding, no terminal, and detection of a dead connection."""
    options = [
        *("-T", "-a", "-x", "-oClearAllForwardings=yes", "-oRemoteCommand=none"),
        "-oBatchMode=yes",
        f"-oConnectTimeout={_CONNECT_TIMEOUT_S}",
        f"-oServerAliveInterval={_ALIVE_INTERVAL_S}",
        f"-oServerAliveCountMax={_ALIVE_COUNT}",
        "-oLogLevel=ERROR",  # omits the banner, which is arbitrary text
    ]
    options += ["-F", ssh_config] if ssh_config is not None else []
    options += ["-p", str(account.port)] if account.port is not None else []
    options += ["-l", account.user] if account.user is not None else []
    return ["ssh", *options, "--", account.host, command_line]
