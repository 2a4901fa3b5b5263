"""The screen shows bounds, or an expected figure between bounds, as the basis of the lazy kernel's figure allows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.report.screens import inspect
from tests.report.test_report import HOSTILE_NAMES
from tests.warehouse.outcomes import ok, set_cell


def host(basis: str | None, **cells: Any) -> dict[str, Any]:
    """Return a host of 5 list_lrus with these cells each; its sums are 5 times the figures of one."""
    outcome = ok("a")
    table = outcome["tables"]["list_lrus"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    unread_cells = dict.fromkeys(("items", "lazy_charged_bytes", "lazy_empty_bytes", "eager_bytes"), 0)
    rows = [{**row, **unread_cells, **cells} for row in rows]
    lazy_bytes = 5 * cells.get("lazy_bytes", 712)
    set_cell(outcome, "memcg_memory", "upgraded_bytes", None if basis is None else lazy_bytes)
    outcome["tables"]["list_lrus"] = {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}
    lazy_cells = {"layout": "xarray", "memcg_nr_cache_ids": None, "lazy_target": None} if basis is None else {}
    target_cells = {"types_source": "btf", "notes": None, "slab_cache": None, "lazy_target": "v5.18-6.12"}
    target_cells["lazy_error_bytes"] = 10 if basis == "sampled" else None
    outcome["row"] |= {**target_cells, "lazy_basis": basis, **lazy_cells}
    return outcome


def screen(outcome: dict[str, Any]) -> str:
    return re.sub(" +", " ", inspect.text(inspect.host_waste(outcome)))


def test_the_figure_of_a_sample_has_its_error() -> None:
    lines = screen(host("sampled", lazy_low_bytes=70, lazy_charged_bytes=90, lazy_bytes=100, lazy_high_bytes=200))
    assert "lazy v5.18-6.12 500 500 B ± 10 B expected, entries that outlive their objects included" in lines


def test_on_the_basis_charged_the_figure_is_expected_between_two_bounds() -> None:
    # 5 * (4 * 32 + 64 + 64 - 100) = 5 * 156 = 780 wasted
    lines = screen(
        host("charged", lazy_low_bytes=70, lazy_charged_bytes=90, lazy_bytes=100, lazy_high_bytes=200)
    ).splitlines()
    (index,) = (index for index, line in enumerate(lines) if line.startswith("lazy v5.18-6.12"))
    assert [line.strip().split(":")[0] for line in lines[index : index + 4]] == [
        "lazy v5.18-6.12 500 500 B expected, entries that outlive their objects included",
        "450 at least, 450 B",
        "1,000 at most, 0.98 KiB",
        "wasted 780 780 B, 0.00 % of memory",
    ]


def test_on_the_basis_online_the_figure_is_the_upper_bound_and_the_waste_the_lower() -> None:
    text = screen(host("online", lazy_low_bytes=70, lazy_charged_bytes=None, lazy_bytes=200, lazy_high_bytes=200))
    assert "lazy v5.18-6.12 1,000 at most, 0.98 KiB: every online memcg, every list" in text
    assert "350 at least, 350 B" in text
    assert "wasted 280 at least, 280 B" in text
    assert "expected" not in text


@pytest.mark.parametrize(("eager_bytes", "line"), [(1000, "eager kernel 5,000 4.88 KiB: "), (None, None)])
def test_a_lazy_kernel_says_what_the_eager_one_would_have_cost(eager_bytes: int | None, line: str | None) -> None:
    text = screen(host(None, eager_bytes=eager_bytes))
    assert (line or "eager kernel") in text if line else "eager kernel" not in text


def test_what_else_memory_cgroups_cost_and_the_net_of_an_upgrade() -> None:
    # 5 * (256 - 100) of list_lrus and 192 - 3072 of shrinker_info
    text = screen(host("charged", lazy_low_bytes=70, lazy_charged_bytes=90, lazy_bytes=100, lazy_high_bytes=200))
    assert "shrinker_info 192 128 B for online cgroups; 64 B for dying ones; 3.00 KiB with Linux 6.12\n" in text
    assert "net -2,100 -2.05 KiB freed by an upgrade to Linux 6.12, list_lrus included\n" in text


@pytest.mark.parametrize("part", ["list_lru", "shrinker_info", "memcg_structs", "memcg_percpu"])
def test_without_a_part_that_an_upgrade_may_enlarge_there_is_no_net(part: str) -> None:
    outcome = host("charged", lazy_charged_bytes=90)
    parts = outcome["tables"]["memcg_memory"]
    parts["rows"] = [row for row in parts["rows"] if row[0] != part]
    text = screen(outcome)
    assert "What else memory cgroups cost:" in text
    assert "net" not in re.findall("^[a-z]+", text, re.MULTILINE)


def test_a_lower_bound_below_0_is_not_known_to_be_wasted_or_freed() -> None:
    text = screen(host("online", lazy_low_bytes=70, lazy_charged_bytes=None, lazy_bytes=300, lazy_high_bytes=300))
    assert "wasted none known\n" in text
    assert "net none known\n" in text


def test_list_lrus_of_unknown_owner_are_counted() -> None:
    assert "5 list_lrus (5 of unknown owner), 1.25 KiB" in screen(host("online", owner="unknown"))
    assert "unknown" not in screen(host("online"))


@pytest.mark.parametrize("basis", ["charged", "online", None])
@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "{0.__class__} {x} {"])
def test_a_text_of_a_host_changes_no_line_and_no_terminal(name: str, basis: str | None) -> None:
    """No schema has checked its columns here, so that a hostile host can have any text in each."""
    hostile, harmless = (host(basis, lazy_charged_bytes=90) for _ in range(2))
    for outcome, text in ((hostile, name), (harmless, "a")):
        columns = (
            "host",
            "kernel_release",
            "arch",
            "types_source",
            "consistency",
            "target_kernel",
            "slab_cache",
            "notes",
        )
        outcome["row"] |= dict.fromkeys(columns, text) | {"slab_cache_active_objects": None}
        outcome["row"] |= {"lazy_target": text} if basis else {"layout": text}
        set_cell(outcome, "memcg_memory", "part", text)
    shown, expected = (inspect.text(inspect.host_waste(outcome)) for outcome in (hostile, harmless))
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert len(shown.splitlines()) == len(expected.splitlines())
