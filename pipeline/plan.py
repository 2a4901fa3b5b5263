"""Targets to placed batches: which collections run together, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inventory import Target

HERE = "here"
"""The node where the command was typed; fanout knows its id."""

# A batch saves the cost of a Ray task (1 ms) a target; more than this saves nothing that can be measured.
_MAX_BATCH = 16
# So many batches for each slot, that the last one to finish does not keep the others waiting long.
_BATCHES_PER_SLOT = 16


@dataclass(frozen=True)
class Batch:
    """Targets that one task collects one after another; node: HERE, or None for any."""

    targets: tuple[Target, ...]
    node: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a run does: every target in exactly one batch. parallel: how many batches at a time."""

    batches: tuple[Batch, ...]
    parallel: int

    @property
    def targets(self) -> int:
        return sum(len(batch.targets) for batch in self.batches)


def make(targets: Sequence[Target], parallel: int) -> Plan:
    """Place the targets: cores on any node, `live:` here.

    :param parallel: how many targets are collected at the same time, at least 1.
    """
    size = max(1, min(_MAX_BATCH, len(targets) // (parallel * _BATCHES_PER_SLOT)))
    placed: dict[str | None, list[Target]] = {}
    for target in targets:
        placed.setdefault(HERE if target.kind == "live" else None, []).append(target)
    batches = (
        Batch(tuple(group[start : start + size]), node)
        for node, group in placed.items()
        for start in range(0, len(group), size)
    )
    return Plan(tuple(batches), parallel)
