"""Transports: each builds the command that starts the collector of a target. One module per kind of target."""

from __future__ import annotations

from pipeline.fanout.transports import live, qmp, ssh, vmcore
from pipeline.fanout.transports.command import Command, TargetError
from pipeline.fanout.transports.session import CONNECTION_LOST_EXIT_CODE, OUT_OF_MEMORY_EXIT_CODE, STDERR_SEPARATOR
from pipeline.fanout.transports.ssh import check_client
from pipeline.inventory import Target

__all__ = [
    "CONNECTION_LOST_EXIT_CODE",
    "OUT_OF_MEMORY_EXIT_CODE",
    "STDERR_SEPARATOR",
    "Command",
    "TargetError",
    "check_client",
    "command",
]

_KINDS = {
    "vmcore": vmcore.command,
    "live": live.command,
    "ray": live.command,
    "ssh": ssh.command,
    "qmp": qmp.command,
}


def command(target: Target) -> Command:
    """Return the command to run on the node that the plan chose.

    :raises TargetError:
    """
    if target.via is not None and target.via.startswith("ssh:"):
        return ssh.command(target)
    return _KINDS[target.kind](target)
