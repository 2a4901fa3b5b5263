"""The same work on an eager and on lazy kernels: their slabs differ by the audit's wasted_bytes."""

from __future__ import annotations

from functools import cache

import pytest

from tests.lab import kernels, pairs
from tests.lab.pairs import EAGER, LAZY, PAIRS, Bytes

pytestmark = pytest.mark.lab


@cache
def series_difference(name: str, series: str) -> Bytes:
    return pairs.series_difference(PAIRS[name], series, kernels.debian_kernel)


@pytest.mark.parametrize("series", LAZY)
@pytest.mark.parametrize("name", PAIRS)
def test_two_kernels_differ_by_what_is_wasted(name: str, series: str) -> None:
    difference = series_difference(name, EAGER) - series_difference(name, series)
    assert difference.predicted_bytes > 100e6
    assert difference.measured_bytes == pytest.approx(difference.predicted_bytes, rel=0.01, abs=1e6)
