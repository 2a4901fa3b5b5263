"""Transport for the running kernel of the node itself: the machine of the command, or a node of the Ray cluster."""

from __future__ import annotations

from dataclasses import replace

from pipeline.fanout.transports.command import Command, collector
from pipeline.inventory import Target


def command(target: Target) -> Command:
    return collector(replace(target, source="live:"))
