"""How the collector of a target is started: a target to a command, nothing else. One module a kind."""

from __future__ import annotations

from pipeline.inventory import Target
from pipeline.transports import live, vmcore
from pipeline.transports.command import Command

__all__ = ["Command", "command"]

_KINDS = {"vmcore": vmcore.command, "live": live.command}


def command(target: Target) -> Command:
    """Return what to run on the node that the plan chose."""
    return _KINDS[target.kind](target)
