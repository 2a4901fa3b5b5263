"""Transport for a core file on the node."""

from __future__ import annotations

from pipeline.fanout.transports.command import Command, collector
from pipeline.inventory import Target


def command(target: Target) -> Command:
    return collector(target, required_file=target.source)
