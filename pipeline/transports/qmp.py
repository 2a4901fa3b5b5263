"""A QEMU guest whose monitor's socket the node sees."""

from __future__ import annotations

from pipeline.inventory import Target
from pipeline.transports.command import Command, collector


def command(target: Target) -> Command:
    return Command(collector(target))
