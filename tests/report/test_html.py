"""The HTML report without a browser: its exact figures are those of the views, and its policy fits what is in it."""

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
from tests.report.test_advice import host, lazy
from tests.report.test_report import DAY, HOSTILE
from tests.warehouse.outcomes import STARTED_AT, failed, ok, publish, session


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """web-2 gets a lazy kernel between two runs."""
    root = tmp_path_factory.mktemp("warehouse")
    first, second, after = host("web-1"), host("web-2"), lazy("web-2")
    for made, rack in ((first, "r1"), (second, "r2"), (after, "r2")):
        made["row"] |= {"labels": {"rack": rack}, "booted_at": STARTED_AT - 10 * DAY}
    after["row"] |= {"captured_at": STARTED_AT + DAY, "booted_at": STARTED_AT + DAY // 2}
    publish(root, first, second, audit="prod", run_id="20250101T000000Z-00000001")
    publish(root, first, after, audit="prod", run_id="20250102T000000Z-00000002", started_at=STARTED_AT + DAY)
    return root


def page(root):
    file = io.StringIO()
    RENDERERS["html"](build_report(session(root)), file)
    return file.getvalue()


def part(text, title):
    """What stands below a heading, up to the next of its kind."""
    return re.split(r"<h[23]", text.partition(f">{title}</h")[2])[0]


def test_the_exact_bytes_of_the_views_are_in_it(root):
    text = page(root)
    for row in session(root).rows("FROM host_waste"):
        for column in ("list_lru_bytes", "lazy_bytes", "wasted_bytes"):
            assert f'<data value="{row[column]}"' in part(text, "Ranking")


def test_bounds_are_marked_among_expected_figures(tmp_path):
    for bases, marked in ((("charged", "online", None), 1), (("online", None), 0), (("charged", None), 0)):
        hosts = [host(f"host-{basis}") for basis in bases]
        for made, basis in zip(hosts, bases, strict=True):
            made["row"]["lazy_basis"] = basis
        publish(tmp_path / bases[0] / str(marked), *hosts)
        text = page(tmp_path / bases[0] / str(marked))
        ranking = part(text, "Ranking")
        rows = re.findall(r"<tr><td.*?</tr>", ranking)
        assert len(rows) == len(bases)
        for row in rows:
            signs = [("at most", "≤"), ("at least", "≥")] if marked and "host-online" in row else []
            assert re.findall(r'<span role="img" aria-label="([^"]*)">(.)</span> <data', row) == signs
        assert ranking.count("≤ and ≥ mark hosts") == marked
        scripted = json.loads(re.search(r'id="ranking-rows">(.*?)</script>', text, re.DOTALL)[1])
        at = scripted["columns"].index("bounded")
        assert [row[1] for row in scripted["rows"] if row[at]] == ["host-online"] * marked


def test_what_an_upgrade_freed_stands_beside_what_was_predicted(root):
    (upgrade,) = session(root).rows("FROM upgrades")
    shown = part(page(root), "Kernels that changed")
    assert re.findall(r'<data value="(-?\d+)"', shown) == [
        str(upgrade["predicted_saves_bytes"]),
        str(upgrade["freed_bytes"]),
    ]
    assert "6.1.0-50-cloud-amd64" in shown


def test_each_label_that_tells_hosts_apart_has_a_chart(root, tmp_path):
    names = re.findall(r'<text class="name"[^>]*>([^<]*)<', part(page(root), "By label rack"))
    assert names == ["r1", "r2"]
    publish(tmp_path, ok("web-1"), ok("web-2"))  # both in rack r1
    assert "By label" not in page(tmp_path)


def test_label_values_that_look_alike_are_told_apart_and_sum_to_the_fleet(tmp_path):
    """Also one that is empty from none at all, and one that is called as that is shown."""
    values = ["a\nb", r"a\nb", r'"a\nb"', "", "(without it)", "plain", None]
    outcomes = [host(f"web-{n}") for n in range(len(values))]
    for made, value in zip(outcomes, values, strict=True):
        made["row"]["labels"] = {} if value is None else {"rack": value}
    publish(tmp_path, *outcomes)
    shown = html.unescape(part(page(tmp_path), "By label rack"))
    names = re.findall(r'<text class="name"[^>]*>([^<]*)<', shown)
    assert sorted(names) == sorted(
        [r'"a\nb"', r"a\nb", r'"\"a\\nb\""', '""', '"(without it)"', "plain", "(without it)"]
    )
    one = session(tmp_path).rows("SELECT DISTINCT wasted_bytes FROM host_waste")[0]["wasted_bytes"]
    assert re.findall(r'<text class="value"[^>]*>([^<]*)<', shown) == [human_bytes(one)] * len(values)


def test_labels_that_look_alike_have_a_chart_each(tmp_path):
    outcomes = [host("web-1"), host("web-2")]
    for made, label in zip(outcomes, ("a\nb", r"a\nb"), strict=True):
        made["row"]["labels"] = {label: "x"}
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
    outcomes = [ok(name) for name in HOSTILE]
    for made, name in zip(outcomes, HOSTILE, strict=True):
        made["row"] |= {"kernel_release": name, "labels": {name: name}}
    publish(tmp_path, *outcomes, audit="</script>")
    text = page(tmp_path)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<script>alert" not in text
    assert all(char.isprintable() or char == "\n" for char in text)
    embedded = re.search(r'id="ranking-rows">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in embedded
    assert len(json.loads(embedded)["rows"]) == len(HOSTILE)


def test_a_run_without_numbers_is_a_page_too(tmp_path):
    publish(tmp_path, failed("web-1", error="<b>no</b>"))
    text = page(tmp_path)
    assert "&lt;b&gt;no&lt;/b&gt;" in text
    assert "Ranking" not in text
