"""--fail-if: what a condition says, when it fires, and what is none."""

from __future__ import annotations

import pytest

from pipeline.report.model import build_report
from pipeline.report.threshold import Threshold, ThresholdError
from tests.warehouse.outcomes import failed, ok, publish, session


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A host of 4 GiB with 81 list_lrus that hold 3,146,240 bytes each, and one without numbers."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("web-1", mounts=40, nodes=4, cache_ids=24574), failed("web-2"))
    return build_report(session(root))


# 4 * 24574 * 32 + 2 * 4 * 64 = 3,145,984 bytes a list_lru, of which a lazy kernel holds 904.
HELD = 81 * (4 * 24574 * 32 + 512)
WASTED = HELD - 81 * 904


@pytest.mark.parametrize(
    ("condition", "fires"),
    [
        (f"wasted_bytes >= {WASTED}", True),
        (f"wasted_bytes > {WASTED}", False),
        (f"list_lru_bytes<{HELD}", False),
        (f"list_lru_bytes <= {HELD}", True),
        ("wasted_bytes > 243 MiB", False),
        ("wasted_bytes > 242.9MiB", True),
        ("worst_wasted_bytes>0.2G", True),
        ("worst_wasted_bytes > 1TB", False),
        ("worst_wasted_bytes > 0.1Gi", True),
        ("wasted_bytes > 0.2372GiB", True),
        ("wasted_bytes > 0.2547GB", True),
        ("wasted_bytes > 0.2548GB", False),
        ("wasted_bytes > 254.7m", True),
        ("wasted_pct_of_memory > 5.9", True),
        ("worst_wasted_pct_of_memory > 6", False),
        ("not_good > 0", True),
        ("not_good_pct > 50", False),
        ("not_good_pct >= 50", True),
    ],
)
def test_a_condition_holds_or_not(found, condition, fires):
    assert Threshold.parse(condition).fires(found) is fires


def test_what_fired_is_said_with_its_value(found):
    assert Threshold.parse("not_good > 0").said(found) == "not_good is 1, > 0"
    assert Threshold.parse("wasted_bytes > 1MiB").said(found) == f"wasted_bytes is {WASTED:,}, > 1,048,576"


def test_without_a_host_that_has_numbers_nothing_is_known_but_that(tmp_path):
    publish(tmp_path, failed("web-1"))
    found = build_report(session(tmp_path))
    for figure in ("wasted_bytes", "wasted_pct_of_memory", "worst_wasted_bytes", "list_lru_bytes"):
        assert not Threshold.parse(f"{figure} >= 0").fires(found)
    assert Threshold.parse("not_good_pct >= 100").fires(found)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wasted_bytes", "is no condition such as"),
        ("wasted_bytes > ", "is no condition such as"),
        ("wasted_bytes > -1", "is no condition such as"),
        ("wasted_bytes > 1 parsec", "'1 parsec' is no size such as"),
        ("wasted_bytes > 1iB", "'1iB' is no size such as"),
        ("wasted_bytes == 1", "is no condition such as"),
        ("waste > 1", "waste is none of wasted_bytes, "),
        ("not_good > 1G", "not_good has no unit"),
        ("not_good > 1B", "not_good has no unit"),
    ],
)
def test_what_is_no_condition_is_refused(text, why):
    with pytest.raises(ThresholdError, match=why):
        Threshold.parse(text)
