"""What `pipeline.plan` promises: every target once, small batches, `live:` where the command was typed."""

from __future__ import annotations

import pytest

from pipeline import plan
from pipeline.inventory import Target


def targets(count: int, kind: str = "vmcore") -> list[Target]:
    return [Target(f"{kind}{number}", kind, f"/{number}") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 6, 31, 500, 100_000])
@pytest.mark.parametrize("parallel", [1, 2, 64])
def test_every_target_is_in_one_batch(count, parallel):
    made = plan.make(targets(count), parallel)
    assert [target for batch in made.batches for target in batch.targets] == targets(count)
    assert made.targets == count
    assert made.parallel == parallel


def test_few_targets_are_not_bundled_so_that_all_slots_work():
    assert [len(batch.targets) for batch in plan.make(targets(6), 2).batches] == [1] * 6


def test_many_targets_are_bundled_but_not_so_many_that_one_slot_works_alone_at_the_end():
    sizes = [len(batch.targets) for batch in plan.make(targets(10_000), 4).batches]
    assert max(sizes) == 16
    assert len(sizes) >= 16 * 4


def test_live_is_placed_here_and_cores_anywhere():
    made = plan.make([*targets(2), *targets(1, "live"), *targets(1)], 2)
    places = {target.kind: batch.node for batch in made.batches for target in batch.targets}
    assert places == {"vmcore": None, "live": plan.HERE}
