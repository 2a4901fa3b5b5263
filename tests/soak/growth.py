"""The growth of a quantity over time: a line through the medians of blocks, with the error of its slope."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Allocators and caches fill at first.
_WARM_UP = 0.25
# A run moves the memory by some 100 KiB up and down; medians of neighbours are independent enough for a line.
_BLOCKS = 10


@dataclass(frozen=True)
class Growth:
    """A slope per hour and its error, two standard deviations."""

    per_hour: float
    error: float


def growth(samples: Sequence[tuple[float, float]]) -> Growth | None:
    """Return the growth by (seconds, value), without the warm-up; None for too few samples."""
    samples = samples[int(len(samples) * _WARM_UP) :]
    if len(samples) < 2 * _BLOCKS:
        return None
    edges = [len(samples) * number // _BLOCKS for number in range(_BLOCKS + 1)]
    blocks = [samples[start:end] for start, end in itertools.pairwise(edges)]
    hours = [statistics.fmean(time for time, _ in block) / 3600 for block in blocks]
    values = [statistics.median(value for _, value in block) for block in blocks]
    slope, intercept = statistics.linear_regression(hours, values)
    residuals = sum((value - intercept - slope * hour) ** 2 for hour, value in zip(hours, values, strict=True))
    spread = sum((hour - statistics.fmean(hours)) ** 2 for hour in hours)
    return Growth(slope, 2 * (residuals / (_BLOCKS - 2) / spread) ** 0.5)
