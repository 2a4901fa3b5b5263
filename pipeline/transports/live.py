"""The kernel that the node itself runs, where the command was typed or a node of the Ray cluster."""

from __future__ import annotations

from dataclasses import replace

from pipeline.inventory import Target
from pipeline.transports.command import Command, collector


def command(target: Target) -> Command:
    return Command(collector(replace(target, source="live:")))
