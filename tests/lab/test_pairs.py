"""The same work on an eager and on lazy kernels: their slabs differ by the audit's wasted_bytes."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from tests import campaign
from tests.lab import kernels, pairs
from tests.lab.pairs import EAGER, LAZY, PAIRS, Bytes

pytestmark = pytest.mark.lab


def comparisons() -> list[tuple[str, str]]:
    """Every pair with each lazy kernel in a full campaign, else every pair and every lazy kernel once."""
    if campaign.IS_FULL:
        return list(itertools.product(PAIRS, LAZY))
    return list(zip(PAIRS, random.Random(campaign.SEED).sample(LAZY, len(LAZY)), strict=True))


@cache
def series_difference(name: str, series: str) -> Bytes:
    return pairs.series_difference(PAIRS[name], series, kernels.debian_kernel)


@pytest.mark.parametrize(("name", "series"), comparisons())
def test_two_kernels_differ_by_what_is_wasted(name: str, series: str) -> None:
    difference = series_difference(name, EAGER) - series_difference(name, series)
    assert difference.predicted_bytes > 100e6
    assert difference.measured_bytes == pytest.approx(difference.predicted_bytes, rel=0.01, abs=1e6)
