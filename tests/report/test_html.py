"""The HTML report without a browser: its exact figures are those of the views, its policy that of its content."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re

import pytest

from pipeline.common.text import human_bytes
from pipeline.report.formats import RENDERERS
from pipeline.report.model import build_report
from tests.report.test_advice import host, lazy_host
from tests.report.test_report import DAY_US, HOSTILE_NAMES
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A warehouse of two runs, between which web-2 got a lazy kernel."""
    root = tmp_path_factory.mktemp("warehouse")
    web1, web2, lazy_web2 = host("web-1"), host("web-2"), lazy_host("web-2")
    for outcome, rack in ((web1, "r1"), (web2, "r2"), (lazy_web2, "r2")):
        outcome["row"] |= {"labels": {"rack": rack}, "booted_at": STARTED_AT - 10 * DAY_US}
    lazy_web2["row"] |= {"captured_at": STARTED_AT + DAY_US, "booted_at": STARTED_AT + DAY_US // 2}
    publish(root, web1, web2, audit="prod", run_id="20250101T000000Z-00000001")
    publish(root, web1, lazy_web2, audit="prod", run_id="20250102T000000Z-00000002", started_at=STARTED_AT + DAY_US)
    return root


def page(root):
    file = io.StringIO()
    RENDERERS["html"](build_report(session(root)), file)
    return file.getvalue()


def section_of(text, title):
    """Return the HTML below a heading, up to the next h2 or h3."""
    return re.split(r"<h[23]", text.partition(f">{title}</h")[2])[0]


def test_the_exact_bytes_of_the_views_are_in_it(root):
    text = page(root)
    for row in session(root).rows("FROM host_waste"):
        for column in ("list_lru_bytes", "lazy_bytes", "wasted_bytes"):
            assert f'<data value="{row[column]}"' in section_of(text, "Ranking")


def test_bounds_are_marked(tmp_path):
    for bases, mark_count in ((("charged", "online", None), 1), (("online", None), 1), (("charged", None), 0)):
        hosts = [host(f"host-{basis}") for basis in bases]
        for outcome, basis in zip(hosts, bases, strict=True):
            outcome["row"]["lazy_basis"] = basis
        publish(tmp_path / bases[0] / str(mark_count), *hosts)
        text = page(tmp_path / bases[0] / str(mark_count))
        ranking = section_of(text, "Ranking")
        rows = re.findall(r"<tr><td.*?</tr>", ranking)
        assert len(rows) == len(bases)
        for row in rows:
            signs = [("at most", "≤"), ("at least", "≥")] if "host-online" in row else []
            assert re.findall(r'<span role="img" aria-label="([^"]*)">(.)</span> <data', row) == signs
        assert ranking.count("≤ and ≥ mark hosts") == mark_count
        script_rows = json.loads(re.search(r'id="ranking-rows">(.*?)</script>', text, re.DOTALL)[1])
        bounded_index = script_rows["columns"].index("lower_bound")
        assert [row[1] for row in script_rows["rows"] if row[bounded_index]] == ["host-online"] * mark_count


def test_the_error_of_a_sample_stands_beside_its_figure(tmp_path):
    sampled = host("sampled")
    sampled["row"] |= {"lazy_basis": "sampled", "lazy_error_bytes": 3072}
    publish(tmp_path, sampled, host("charged"))
    text = page(tmp_path)
    rows = re.findall(r"<tr><td.*?</tr>", section_of(text, "Ranking"))
    assert ["KiB</data> ± 3.00 KiB</td>" in row for row in rows] == ["sampled" in row for row in rows]
    script_rows = json.loads(re.search(r'id="ranking-rows">(.*?)</script>', text, re.DOTALL)[1])
    error_index = script_rows["columns"].index("lazy_error_bytes")
    assert {row[1]: row[error_index] for row in script_rows["rows"]} == {"sampled": 3072, "charged": None}
    assert "± is half of the 95 % interval from that; the waste and the net have this error, too" in text


def test_what_an_upgrade_freed_stands_beside_what_was_predicted(root):
    (upgrade,) = session(root).rows("FROM upgrades")
    section = section_of(page(root), "Kernels that changed")
    assert re.findall(r'<data value="(-?\d+)"', section) == [
        str(upgrade["predicted_saves_bytes"]),
        str(upgrade["freed_bytes"]),
        str(upgrade["predicted_net_bytes"]),
        str(upgrade["totals_freed_bytes"]),
    ]
    assert "6.1.0-50-cloud-amd64" in section


def test_what_else_memory_cgroups_cost_has_a_table_and_a_bar_of_parts(root):
    section = section_of(page(root), "What else memory cgroups cost here")
    costs = {row["part"]: row for row in build_report(session(root)).memcg_costs.to_pylist()}
    assert set(costs) == {"list_lru", "shrinker_info", "memcg_structs", "memcg_percpu"}
    for row in costs.values():
        for column in ("held_bytes", "online_bytes", "dying_bytes", "left_bytes", "upgraded_bytes"):
            assert f'<data value="{row[column]}"' in section
    chart = section_of(page(root), "The hosts that hold most")
    assert (
        re.findall(r'<rect class="part\d"[^>]*><title>(.*?)</title>', chart)
        == [*("list_lru", "shrinker_info", "memcg_percpu", "memcg_structs")] * 2
    )
    # The bar of web-1 is as wide as there is room, and its parts are side by side.
    first, second = re.findall(r'<rect class="part\d" x="([\d.]+)"[^>]*width="([\d.]+)"[^>]*><title>', chart)[:2]
    assert float(second[0]) == pytest.approx(float(first[0]) + float(first[1]), abs=0.1)
    assert float(first[1]) + float(second[1]) == pytest.approx(720 - 210 - 90, abs=0.1)


def test_what_list_lrus_hold_at_most_after_an_upgrade_is_marked(tmp_path):
    for basis, marked_parts in (("online", ["list_lru"]), ("charged", [])):
        publish(tmp_path / basis, host("web-1", lazy_basis=basis))
        section = section_of(page(tmp_path / basis), "What else memory cgroups cost here")
        rows = re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", section)
        assert [part for part, cells in rows if 'aria-label="at most">≤</span> <data' in cells] == marked_parts


def test_the_net_of_the_fleet_and_of_each_host_has_a_table(tmp_path):
    for basis, sign in (("online", '<span role="img" aria-label="at least">≥</span> '), ("charged", "")):
        publish(tmp_path / basis, host("web-1", lazy_basis=basis))
        text = page(tmp_path / basis)
        (row,) = session(tmp_path / basis).rows("FROM upgrade_net")
        table = text.partition("<caption>Net of an upgrade")[2].partition("</table>")[0]
        assert table.count(f'<td class="n">{sign}<data value="{row["net_bytes"]}"') == 2


def test_without_other_parts_nothing_is_said_of_them(tmp_path):
    outcome = ok("web-1")
    del outcome["tables"]["memcg_memory"]["rows"][1:]
    publish(tmp_path, outcome)
    assert "What else" not in page(tmp_path)


def test_a_lower_bound_below_0_is_no_known_waste(tmp_path):
    publish(tmp_path, ok("web-1"))
    text = page(tmp_path)
    ranking = section_of(text, "Ranking")
    assert '<td class="n">none known</td><td class="n"></td></tr>' in ranking
    assert "<b>none known</b><span>wasted, of" in text
    assert "-2.23 KiB" not in text


def test_each_row_decides_what_is_known_of_its_waste(tmp_path):
    """A kernel's and a label's waste is a bound if one of its hosts has one; the waste of the others is exact."""
    hosts = [ok(f"web-{n}") for n in range(3)]
    releases = ("5.10.1", "5.10.2", "5.10.2")
    for outcome, basis, release in zip(hosts, ("charged", "charged", "online"), releases, strict=True):
        outcome["row"] |= {"lazy_basis": basis, "kernel_release": release, "labels": {"release": release}}
    publish(tmp_path / "a", *hosts)
    text = page(tmp_path / "a")
    # 5 list_lrus of 256 bytes, and lazy ones of 712
    kernels = section_of(text, "By kernel")
    assert re.findall(r'<text class="value"[^>]*>([^<]*)<', kernels) == ["-2.23 KiB", "none known"]
    assert re.findall(r'<td class="n">([^<]*|<data[^>]*>[^<]*</data>)</td></tr>', kernels) == [
        '<data value="-2280" title="-2,280 bytes">-2.23 KiB</data>',
        "none known",
    ]
    labels = section_of(text, "By label release")
    assert re.findall(r'<text class="value"[^>]*>([^<]*)<', labels) == ["-2.23 KiB", "none known"]
    nets = text.partition("<caption>Net of an upgrade")[2].partition("</table>")[0]
    assert nets.count("none known") == 2  # the fleet and web-2
    assert nets.count(">-5.04 KiB<") == 2


def test_the_trend_shows_bounds_and_draws_nothing_below_0(tmp_path):
    runs = ((4, "charged"), (4, "online"), (382, "online"), (382, "charged"))
    for n, (cache_ids, basis) in enumerate(runs, 1):
        outcome = ok("web-1", cache_ids=cache_ids)
        outcome["row"]["lazy_basis"] = basis
        run_id = f"2025010{n}T000000Z-0000000{n}"
        publish(tmp_path, outcome, audit="prod", run_id=run_id, started_at=STARTED_AT + n * DAY_US)
    trend = section_of(page(tmp_path), "Trend of this audit")
    waste = human_bytes(5 * (382 * 32 + 128 - 712))
    dots = re.findall(r'cy="([\d.]+)" r="3"><title>[\d-]+: ([^<]*)</title>', trend)
    assert dots == [("150.0", "-2.23 KiB"), ("150.0", "none known"), ("10.0", f"≥ {waste}"), ("10.0", waste)]


def test_each_label_that_tells_hosts_apart_has_a_chart(root, tmp_path):
    names = re.findall(r'<text class="name"[^>]*>([^<]*)<', section_of(page(root), "By label rack"))
    assert names == ["r1", "r2"]
    publish(tmp_path, ok("web-1"), ok("web-2"))  # both in rack r1
    assert "By label" not in page(tmp_path)


def test_label_values_that_look_alike_are_told_apart_and_sum_to_the_fleet(tmp_path):
    """An empty value is told from a missing label, and so is a value that equals the text shown for a missing label."""
    values = ["a\nb", r"a\nb", r'"a\nb"', "", "(without it)", "plain", None]
    outcomes = [host(f"web-{n}") for n in range(len(values))]
    for outcome, value in zip(outcomes, values, strict=True):
        outcome["row"]["labels"] = {} if value is None else {"rack": value}
    publish(tmp_path, *outcomes)
    section = html.unescape(section_of(page(tmp_path), "By label rack"))
    names = re.findall(r'<text class="name"[^>]*>([^<]*)<', section)
    assert sorted(names) == sorted(
        [r'"a\nb"', r"a\nb", r'"\"a\\nb\""', '""', '"(without it)"', "plain", "(without it)"]
    )
    host_bytes = session(tmp_path).rows("SELECT DISTINCT wasted_bytes FROM host_waste")[0]["wasted_bytes"]
    assert re.findall(r'<text class="value"[^>]*>([^<]*)<', section) == [human_bytes(host_bytes)] * len(values)


def test_labels_that_look_alike_have_a_chart_each(tmp_path):
    outcomes = [host("web-1"), host("web-2")]
    for outcome, label in zip(outcomes, ("a\nb", r"a\nb"), strict=True):
        outcome["row"]["labels"] = {label: "x"}
    publish(tmp_path, *outcomes)
    assert re.findall(r"<h3>By label (.*?)</h3>", html.unescape(page(tmp_path))) == [r'"a\nb"', r"a\nb"]


def test_the_policy_lets_the_script_and_the_style_run_and_nothing_else(root):
    text = page(root)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert " style=" not in text
    assert not re.search(r"\son\w+=", text)
    assert not re.search(r"(src|href)=\"(?!https://git\.kernel\.org/)", text)


def test_hostile_names_stay_text(tmp_path):
    outcomes = [ok(name) for name in HOSTILE_NAMES]
    for outcome, name in zip(outcomes, HOSTILE_NAMES, strict=True):
        outcome["row"] |= {"kernel_release": name, "labels": {name: name}}
    publish(tmp_path, *outcomes, audit="</script>")
    text = page(tmp_path)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<script>alert" not in text
    assert all(char.isprintable() or char == "\n" for char in text)
    ranking_json = re.search(r'id="ranking-rows">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in ranking_json
    assert len(json.loads(ranking_json)["rows"]) == len(HOSTILE_NAMES)


def test_a_run_without_numbers_is_a_page_too(tmp_path):
    publish(tmp_path, failure("web-1", error="<b>no</b>"))
    text = page(tmp_path)
    assert "&lt;b&gt;no&lt;/b&gt;" in text
    assert "Ranking" not in text
