"""The same work on an eager and on lazy kernels: the upgrade gives back what the audit of the eager kernel predicts."""

from __future__ import annotations

from functools import cache

import pytest

from tests import campaign
from tests.lab import kernels, pairs
from tests.lab.pairs import EAGER, LAZY, PAIRS, PERCPU_LEFT, SLAB_LEFT, Guest

pytestmark = pytest.mark.lab


@cache
def guests(name: str, series: str) -> tuple[Guest, Guest]:
    return pairs.guests(PAIRS[name], series, kernels.debian_kernel)


@pytest.mark.parametrize("series", LAZY)
@pytest.mark.parametrize("name", campaign.sample(list(PAIRS), 1))
def test_an_upgrade_gives_back_what_is_predicted(name: str, series: str) -> None:
    big, control = pairs.compare(guests(name, EAGER), guests(name, series), series)
    removed = big - control
    assert [big.errors[part] for part in ("shrinker_info", "memcg_structs", "memcg_percpu")] == [0, 0, 0]
    predicted_bytes = big.predicted.total()
    assert predicted_bytes > 100e6
    assert abs(removed.rest_bytes) < max(0.01 * predicted_bytes, 1e6)
    assert abs(removed.errors[SLAB_LEFT]) < 0.01 * predicted_bytes
    assert abs(removed.errors[PERCPU_LEFT]) < 0.1 * predicted_bytes
