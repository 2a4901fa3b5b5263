"""Campaigns of `make test-faults` and `make lab-test`: by default these run a random part of the repetitions.

TEST_SEED, which the header of a test run shows, chooses the same part again. TEST_FULL=1 runs all repetitions.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

SEED = int(os.environ.setdefault("TEST_SEED", str(time.time_ns() % 1_000_000)))  # pytest-xdist's workers inherit it
IS_FULL = os.environ.get("TEST_FULL", "0") != "0"


def sample(cases: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the cases in their order, or all of them in a full campaign."""
    if IS_FULL:
        return list(cases)
    indices = random.Random(SEED).sample(range(len(cases)), min(count, len(cases)))
    return [cases[index] for index in sorted(indices)]


def example_and_faults(cases: Sequence[Any], count: int) -> list[Any]:
    """Return the first case, for `make test`, and `count` of the others, for `make test-faults`."""
    return [cases[0], *(pytest.param(case, marks=pytest.mark.faults) for case in sample(cases[1:], count))]
