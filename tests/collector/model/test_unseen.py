"""The estimate of pairs that a sample of slabs does not show, on populations of which all pairs are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.collector.model import unseen

SAMPLES = 300
MIN_COVERAGE = 0.9
"""Minimum share of samples whose interval has the true number: nominally 95 %, but 300 samples vary by 2 %."""

POPULATIONS: dict[str, Callable[[random.Random], int]] = {
    "one slab each": lambda _: 1,
    "ten slabs each": lambda _: 10,
    "few slabs": lambda rng: 1 + int(rng.expovariate(1 / 3)),
    "few and many slabs": lambda rng: rng.choice((1, 1, 2, 3, 20, 200)),
    "log-normal": lambda rng: max(1, int(rng.lognormvariate(1, 1.5))),
}
"""Number of slabs in which a pair has an object, by what it models."""


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("pairs", [10, 60, 600])
@pytest.mark.parametrize("population", POPULATIONS)
def test_the_interval_has_the_number_of_unseen_pairs(population: str, pairs: int, fraction: float) -> None:
    rng = random.Random(f"{population} {pairs} {fraction}")
    covered = 0
    for _ in range(SAMPLES):
        slabs_by_pair = [POPULATIONS[population](rng) for _ in range(pairs)]
        counts = [sum(rng.random() < fraction for _ in range(slabs)) for slabs in slabs_by_pair]
        estimate = unseen.estimate(filter(None, counts), int(fraction * sum(slabs_by_pair)), fraction)
        covered += abs(estimate.pairs - counts.count(0)) <= estimate.error
    assert covered >= MIN_COVERAGE * SAMPLES


def test_pairs_of_one_slab_are_as_many_as_the_fraction_says() -> None:
    """By hand: 30 pairs were seen in 3 of 10 slabs each has, so 70 were not."""
    assert unseen.estimate([1] * 30, 30, 0.3).pairs == pytest.approx(70)


def test_nothing_is_unseen_where_all_slabs_were_read() -> None:
    assert unseen.estimate([1, 1, 2], 9, 1) == (0, 0)


def test_a_small_sample_without_pairs_is_not_certain_of_none() -> None:
    assert unseen.estimate([], 5, 0.5) == (0, pytest.approx(1.96 * 2))


def test_imputed_pairs_are_new_and_of_the_kind_of_those_seen_once() -> None:
    """a, b and c are dentries' lists, d is of inodes. The pairs seen once are the only ones of their lists."""
    lists = ["a", "b", "c"]
    groups: dict[str, list[str]] = {**dict.fromkeys(lists, lists), "d": ["d"]}
    owners = {"a": {1}, "d": {3, 4}}
    imputed = unseen.impute(owners, [("a", 1)], 2, groups, random.Random(0))
    assert imputed == {("b", 1), ("c", 1)}


def test_no_more_pairs_are_imputed_than_there_are() -> None:
    imputed = unseen.impute(
        {"a": {1, 2}}, [("a", 1), ("a", 2)], 100, {"a": ["a", "b"], "b": ["a", "b"]}, random.Random(0)
    )
    assert imputed == {("b", 1), ("b", 2)}
    assert unseen.impute({}, [], 100, {}, random.Random(0)) == set()
