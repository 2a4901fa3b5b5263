"""The same work on an eager and on lazy kernels: their slabs differ by the bytes that the audit calls wasted."""

from __future__ import annotations

from functools import cache

import pytest

from tests.lab import kernels, pairs
from tests.lab.pairs import EAGER, LAZY, PAIRS, Bytes

pytestmark = pytest.mark.lab


@cache
def of_series(name: str, series: str) -> Bytes:
    return pairs.of_series(PAIRS[name], series, kernels.of)


@pytest.mark.parametrize("series", LAZY)
@pytest.mark.parametrize("name", PAIRS)
def test_two_kernels_differ_by_what_is_wasted(name: str, series: str) -> None:
    found = of_series(name, EAGER) - of_series(name, series)
    assert found.predicted > 100e6
    assert found.measured == pytest.approx(found.predicted, rel=0.01, abs=1e6)
