"""How the collector of a target is started: a target to a command, nothing else. One module a kind."""

from __future__ import annotations

from pipeline.fanout.transports import live, qmp, ssh, vmcore
from pipeline.fanout.transports.command import Command, TargetError
from pipeline.fanout.transports.session import LOST, SAID
from pipeline.inventory import Target

__all__ = ["LOST", "SAID", "Command", "TargetError", "command"]

_KINDS = {
    "vmcore": vmcore.command,
    "live": live.command,
    "ray": live.command,
    "ssh": ssh.command,
    "qmp": qmp.command,
}


def command(target: Target) -> Command:
    """Return what to run on the node that the plan chose.

    :raises TargetError:
    """
    if target.via is not None and target.via.startswith("ssh:"):
        return ssh.command(target)
    return _KINDS[target.kind](target)
