"""--fail-if: the message of a condition, when it fires, and the error of an invalid one."""

from __future__ import annotations

import pytest

from pipeline.report.model import build_report
from pipeline.report.threshold import Threshold, ThresholdError
from tests.warehouse.outcomes import failure, ok, publish, session


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A host of 4 GiB with 81 list_lrus that hold 3,145,984 bytes each, and one without numbers."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("web-1", mounts=40, nodes=4, cache_ids=24574), failure("web-2"))
    return build_report(session(root))


# 4 * 24574 * 32 + 2 * 4 * 64 = 3,145,984 bytes a list_lru, of which a lazy kernel holds 904.
LIST_LRU_BYTES = 81 * (4 * 24574 * 32 + 512)
WASTED_BYTES = LIST_LRU_BYTES - 81 * 904


@pytest.mark.parametrize(
    ("condition", "fires"),
    [
        (f"wasted_bytes >= {WASTED_BYTES}", True),
        (f"wasted_bytes > {WASTED_BYTES}", False),
        (f"list_lru_bytes<{LIST_LRU_BYTES}", False),
        (f"list_lru_bytes <= {LIST_LRU_BYTES}", True),
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
def test_a_condition_holds_or_not(report, condition, fires):
    assert Threshold.parse(condition).fires(report) is fires


def test_a_machine_that_was_reached_twice_counts_once(tmp_path):
    by_ssh, by_qmp = (ok(name, mounts=40, nodes=4, cache_ids=24574) for name in ("web-ssh", "web-qmp"))
    by_ssh["row"] |= {"host": "web", "kind": "ssh", "boot_id": "b"}
    by_qmp["row"] |= {"host": "web", "kind": "qmp", "boot_id": "b"}
    publish(tmp_path, by_ssh, by_qmp)
    report = build_report(session(tmp_path))
    assert Threshold.parse(f"wasted_bytes <= {WASTED_BYTES}").fires(report)
    assert Threshold.parse(f"list_lru_bytes <= {LIST_LRU_BYTES}").fires(report)


def test_what_fired_is_said_with_its_value(report):
    assert Threshold.parse("not_good > 0").message(report) == "not_good is 1, > 0"
    assert Threshold.parse("wasted_bytes > 1MiB").message(report) == f"wasted_bytes is {WASTED_BYTES:,}, > 1,048,576"


def test_without_a_host_that_has_numbers_nothing_is_known_but_that(tmp_path):
    publish(tmp_path, failure("web-1"))
    report = build_report(session(tmp_path))
    for figure in ("wasted_bytes", "wasted_pct_of_memory", "worst_wasted_bytes", "list_lru_bytes"):
        assert not Threshold.parse(f"{figure} >= 0").fires(report)
    assert Threshold.parse("not_good_pct >= 100").fires(report)


@pytest.mark.parametrize(
    ("text", "error_pattern"),
    [
        ("wasted_bytes", "invalid condition .* expected something like"),
        ("wasted_bytes > ", "invalid condition .* expected something like"),
        ("wasted_bytes > -1", "invalid condition .* expected something like"),
        ("wasted_bytes > 1 parsec", "invalid size '1 parsec'; expected"),
        ("wasted_bytes > 1iB", "invalid size '1iB'; expected"),
        ("wasted_bytes == 1", "invalid condition .* expected something like"),
        ("waste > 1", "unknown figure waste; expected one of wasted_bytes, "),
        ("not_good > 1G", "not_good has no unit"),
        ("not_good > 1B", "not_good has no unit"),
    ],
)
def test_what_is_no_condition_is_refused(text, error_pattern):
    with pytest.raises(ThresholdError, match=error_pattern):
        Threshold.parse(text)
