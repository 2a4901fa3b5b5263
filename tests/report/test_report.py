"""The report in every format: the same figures, exact where programs read them, and harmless names."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.cells import cell_len

from pipeline import query
from pipeline.common.text import human_bytes
from pipeline.report.formats import RENDERERS
from pipeline.report.model import build_report
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

DAY_US = 86_400_000_000
HOSTILE_NAMES = [
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x9b31m",
    "[bold]markup[/bold]",
    "new\nline\rreturn\ttab",
    "right\u202eto left",
    "=1+1",
    "@SUM(A1)",
    " +cmd|' /C calc'!A0",
    "pipe|and`tick`",
    "<script>alert(1)</script>",
    "[text](http://evil)",
    'quote"comma,',
    "*stars* _and_ ~~tildes~~",
    "日本",
]


def render(root, form: str, **options) -> str:
    file = io.StringIO()
    RENDERERS[form](build_report(session(root), **options), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    server = ok("web-1", mounts=952, nodes=4, cache_ids=24574)
    server["row"]["memory_bytes"] = 10 * 2**30
    publish(
        root,
        server,
        ok("web-2", mounts=40, nodes=2, cache_ids=766),
        ok("db-1"),
        failure("db-2", "bad_core", "/cores/db-2: not an ELF or kdump core; copy it again"),
        failure("db-3"),
        run_id="20250101T000000Z-00000001",
        audit="prod",
    )
    return root


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    names = [*HOSTILE_NAMES, *(f"failed {name}" for name in HOSTILE_NAMES)]
    outcomes = [ok(name) for name in HOSTILE_NAMES] + [failure(f"failed {name}", error=name) for name in HOSTILE_NAMES]
    publish(root, *outcomes, audit="prod\x1b[2J")
    return root, names


def test_there_is_nothing_to_report_in_an_empty_warehouse(tmp_path):
    with pytest.raises(query.QueryError, match="no published run; make one with: lru-audit run"):
        build_report(session(tmp_path))


def test_a_run_or_an_audit_that_is_not_there_is_named(root):
    with pytest.raises(query.QueryError, match="no published run '20240101T000000Z-00000001'"):
        build_report(session(root), run_id="20240101T000000Z-00000001")
    with pytest.raises(query.QueryError, match="no published run of audit 'lab'"):
        build_report(session(root), audit="lab")


def test_the_newest_run_of_a_named_audit_is_meant_unless_told(tmp_path):
    publish(tmp_path, ok("old"), run_id="20250101T000000Z-00000001", audit="prod")
    publish(tmp_path, ok("new"), run_id="20250102T000000Z-00000002", audit="prod", started_at=STARTED_AT + DAY_US)
    publish(tmp_path, ok("one"), run_id="20250103T000000Z-00000003", started_at=STARTED_AT + 2 * DAY_US)
    options_by_target = {
        "new": {},
        "one": {"audit": "adhoc"},
        "old": {"run_id": "20250101T000000Z-00000001"},
    }
    for target, options in options_by_target.items():
        report = build_report(session(tmp_path), **options)
        assert report.host_waste["target"].to_pylist() == [target]
        assert report.coverage["run_id"].to_pylist() == [report.run["run_id"][0].as_py()]


def test_totals_are_the_sums_of_the_ranking(root):
    report = build_report(session(root))
    for name in ("list_lru_bytes", "lazy_bytes", "wasted_bytes"):
        assert report.totals[name] == sum(report.host_waste[name].to_pylist())
    parts = ("saves_objects_bytes", "saves_transpose_bytes", "saves_xarray_bytes")
    assert sum(report.totals[part] for part in parts) == report.totals["wasted_bytes"]
    assert (report.totals["hosts"], report.totals["memory_bytes"]) == (3, 10 * 2**30 + 2 * 2**32)


def test_text_fits_80_columns_and_truncates_no_number(root, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = render(root, "text")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    # 1905 list_lrus: 4 * 24574 objects of 32 bytes, arrays and node arrays of 4 * 64 each
    list_lru_bytes = 1905 * (4 * 24574 * 32 + 2 * 4 * 64)
    wasted_bytes = list_lru_bytes - 1905 * 904
    (row,) = [line for line in text.splitlines() if line.startswith("1")]
    assert row.split() == [
        *("1", "web-1", "5.10.0-30", "24574", "952", "1"),
        *(f"{list_lru_bytes / 2**30:.2f}", "GiB", f"{1905 * 904 / 2**20:.2f}", "MiB"),
        *(f"{wasted_bytes / 2**30:.2f}", "GiB", f"{100 * wasted_bytes / (10 * 2**30):.1f}"),
    ]


def test_the_net_of_an_upgrade_is_in_the_ranking_where_it_leaves_room_for_names(root, monkeypatch):
    net_bytes = session(root).rows("SELECT net_bytes FROM upgrade_net WHERE target = 'web-1'")[0]["net_bytes"]
    for columns in (92, 93):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = render(root, "text")
        assert max(map(len, text.splitlines())) <= columns
        (row,) = [line for line in text.splitlines() if line.startswith("1")]
        assert row.endswith(human_bytes(net_bytes)) is (columns == 93)
        assert ("net: what an upgrade" in " ".join(text.split())) is (columns == 93)


def test_a_wide_terminal_and_a_pipe_show_more(root, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = render(root, "text")
    monkeypatch.setenv("COLUMNS", "140")
    assert text == render(root, "text")
    assert "5.10.0-30-cloud-amd64" in text
    assert "formula" in text
    assert human_bytes(2 * 952 * 4 * 24574 * 32) in text


def test_text_gives_coverage_with_reasons(root):
    text = re.sub(r"\s+", " ", render(root, "text"))
    assert "3 of 5 targets good" in text
    assert "bad_core OSError 1 20.0" in text
    assert "/cores/db-2: not an ELF or kdump core; copy it again" in text


def text_for_bases(root, *bases, cache_ids=382):
    """Publish a run with a host on each basis and return its text report as one line, without the advice."""
    hosts = [ok(f"host-{basis}", cache_ids=cache_ids) for basis in bases]
    for host, basis in zip(hosts, bases, strict=True):
        host["row"] |= {"lazy_basis": basis, "lazy_target": basis and "v6.13+"}
    publish(root, *hosts)
    return re.sub(r"\s+", " ", render(root, "text")).partition("What to do")[0]


def test_text_says_that_the_waste_is_a_lower_bound_where_it_is(tmp_path):
    text = text_for_bases(tmp_path, "online", None)
    assert "hosts waste at least" in text
    assert "a lazy kernel would hold at most" in text
    assert "v6.13+ would hold; net: what an upgrade to Linux 6.12 frees of all that memcgs cost. Charged" in text
    assert "not read here: lazy is at most this, if every online memcg used every list, and the waste at least" in text
    assert "<=" not in text.partition("What else")[0]


def test_text_says_that_the_waste_is_expected_where_owners_are_known(tmp_path):
    text = text_for_bases(tmp_path, "charged", None)
    assert "v6.13+ would hold for the memcgs that own objects; net: what" in text
    assert not re.search("upper|at least|at most|=", text)


def test_text_marks_the_bounds_among_expected_figures(tmp_path):
    text = text_for_bases(tmp_path, "charged", "online")
    assert "v6.13+ would hold for the memcgs that own objects; net:" in text
    assert "Charged objects were not read where marked <= and >=: lazy is at most this, if every online" in text
    assert text.count(">= ") == 2  # wasted and net
    assert re.search(r"host-online .* <= [\d.]+ \w+ >= [\d.]+ \w+ ", text)


def test_text_gives_the_error_of_samples_beside_their_figures(tmp_path):
    hosts = [ok(f"host-{basis}", cache_ids=382) for basis in ("charged", "sampled", "online")]
    for host, basis in zip(hosts, ("charged", "sampled", "online"), strict=True):
        host["row"] |= {"lazy_basis": basis, "lazy_error_bytes": 3072 if basis == "sampled" else None}
    publish(tmp_path, *hosts)
    text = re.sub(r"\s+", " ", render(tmp_path, "text")).partition("What to do")[0]
    # 5 list_lrus of 712 bytes on each of three hosts.
    assert "a lazy kernel would hold at most 10.4 KiB ± 3.00 KiB." in text
    assert re.search(r"host-sampled [^±]* 3.48 KiB ± 3.00 KiB \d", text)
    assert text.count("± 3.00") == 3  # and of the net of the fleet
    assert "±: half of the 95 % interval, from a sample of the objects" in text
    assert text.count(">= ") == 2  # wasted and net of the third


def test_text_gives_the_net_of_the_fleet(tmp_path):
    # 5 list_lrus of 256 bytes and then 712; 192 bytes of shrinker_info and then 3,072: -5,160.
    assert "Net of the upgrade of 1 host: -5.04 KiB freed." in text_for_bases(tmp_path / "a", "charged", cache_ids=4)
    assert "Net of the upgrade of 1 host: none known." in text_for_bases(tmp_path / "b", "online", cache_ids=4)


def test_text_marks_what_list_lrus_hold_at_most_after_an_upgrade(tmp_path):
    # 5 list_lrus of 64 + 64 + 584 bytes; shrinker_info does not depend on charged objects.
    text = text_for_bases(tmp_path / "online", "online")
    assert "upgraded: with Linux 6.12; <=: at most):" in text
    assert re.search(r" list_lru [^|]*? <= 3.48 KiB shrinker_info [^<]* 3.00 KiB ", text)
    assert "<=" not in text_for_bases(tmp_path / "charged", "charged")


def test_a_lower_bound_below_0_is_no_known_waste(tmp_path):
    # 5 list_lrus of 4 * 32 + 64 + 64 bytes, and lazy ones of at most 64 + 64 + 584
    text = text_for_bases(tmp_path, "online", cache_ids=4)
    assert "Nothing is known to be wasted on 1 host with 4.00 GiB memory:" in text
    assert re.search(r"host-online .* 1.25 KiB 3.48 KiB none known none known \d ", text)
    assert "-2.23 KiB" not in render(tmp_path, "text")
    assert "The difference" not in text
    assert json.loads(render(tmp_path, "json"))["host_waste"][-1]["wasted_bytes"] == 5 * (256 - 712)


def test_an_exact_waste_below_0_is_shown(tmp_path):
    text = text_for_bases(tmp_path, "charged", cache_ids=4)
    assert "1 host wastes -2.23 KiB, -0.0 % of 4.00 GiB memory:" in text
    assert "known" not in text


def test_each_row_decides_what_is_known_of_its_waste(tmp_path):
    # As above; the exact waste below 0 is less than the bound, of which nothing is known.
    text = text_for_bases(tmp_path, "charged", "online", cache_ids=4)
    assert "Nothing is known to be wasted on 2 hosts" in text
    assert re.search(r" 1 host-online .* 3.48 KiB none known none known 1 ", text)
    assert re.search(r" 2 host-charged .* 3.48 KiB -2.23 KiB -0.0 -5.04 KiB 1 ", text)
    assert "Net of the upgrade of 2 hosts: none known." in text


def test_what_is_left_without_older_cores_has_its_own_bound(tmp_path):
    hosts = [ok(name, cache_ids=382) for name in ("web-1", "web-1/older")]
    hosts[0]["row"] |= {"kind": "ssh", "lazy_basis": "charged"}
    hosts[1]["row"] |= {"host": "web-1", "captured_at": STARTED_AT - DAY_US}
    publish(tmp_path, *hosts)
    wasted_bytes = 5 * (382 * 32 + 128 - 712)
    text = render(tmp_path, "text")
    assert f"waste at least {human_bytes(2 * wasted_bytes)}" in text
    assert f"Without them 1 host wastes {human_bytes(wasted_bytes)}." in text


def test_markdown_says_which_figures_are_bounds(tmp_path):
    note = "Where lower_bound is true, lazy_bytes is an upper bound, and wasted_bytes a lower one.\n\n| rank |"
    text_for_bases(tmp_path / "mixed", "charged", "online")
    assert note in render(tmp_path / "mixed", "markdown")
    text_for_bases(tmp_path / "charged", "charged", None)
    assert "bound," not in render(tmp_path / "charged", "markdown")


def test_text_of_lazy_kernels_alone_speaks_of_no_bound(tmp_path):
    text = text_for_bases(tmp_path, None)
    assert "v5.18+ would hold; net" in text
    assert "at least" not in text


def test_text_of_a_run_without_any_good_target_gives_the_reasons(tmp_path):
    publish(tmp_path, failure("a"))
    text = render(tmp_path, "text")
    assert "0 of 1 targets good" in text
    assert "no route to host" in text
    assert "wasted" not in text


def test_text_shows_the_worst_hosts_and_where_the_others_are(tmp_path):
    publish(tmp_path, *(ok(f"host-{index}", mounts=1) for index in range(53)))
    text = render(tmp_path, "text")
    assert len(re.findall(r"^ *\d+ +host-\d+ ", text, re.MULTILINE)) == 50
    assert '... and 3 more: lru-audit sql "SELECT * FROM host_waste"' in text
    assert len(list(csv.reader(io.StringIO(render(tmp_path, "csv"))))) == 54


def test_json_has_the_views_columns_and_exact_numbers(root):
    content = json.loads(render(root, "json"))
    breakdowns = ["kernels", "fstypes", "labels", "distribution", "trend", "upgrades", "doublings", "core_copies"]
    breakdowns = [*breakdowns[:-1], "memcg_costs", "upgrade_net", breakdowns[-1], "machines", "namesakes"]
    assert list(content) == ["run", "notes", "totals", "coverage", "not_ok", "advice", *breakdowns, "host_waste"]
    db = session(root)
    total_bytes = db.rows("SELECT CAST(sum(wasted_bytes) AS BIGINT) AS wasted_bytes FROM host_waste")[0]["wasted_bytes"]
    assert total_bytes > 0
    for breakdown in ("kernels", "fstypes", "distribution"):
        assert sum(row["wasted_bytes"] for row in content[breakdown]) == total_bytes, breakdown
    assert content["trend"][-1]["wasted_bytes"] == total_bytes
    assert content["trend"][-1]["run_id"] == content["run"]["run_id"]
    assert {row["target"] for row in content["doublings"]} <= {row["target"] for row in content["host_waste"]}
    assert content["host_waste"] == db.rows("FROM host_waste")
    assert content["coverage"] == db.rows("FROM coverage ORDER BY targets DESC, status")
    assert [row["target"] for row in content["not_ok"]] == ["db-2", "db-3"]
    assert content["run"]["started_at"] == "2025-11-23T12:13:20Z"
    assert content["run"]["status_bad_core"] == 1


def test_csv_is_the_ranking_with_the_views_columns(root):
    rows = list(csv.DictReader(io.StringIO(render(root, "csv"))))
    expected_rows = session(root).rows("FROM host_waste")
    assert [{k: v for k, v in row.items() if k != "wasted_pct_of_memory"} for row in rows] == [
        {
            k: "" if v is None else str(v).lower() if isinstance(v, bool) else str(v)
            for k, v in row.items()
            if k != "wasted_pct_of_memory"
        }
        for row in expected_rows
    ]


def test_markdown_tables_keep_their_columns(root):
    text = render(root, "markdown")
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "| web-1 |" in text
    assert "&#64;" not in text
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[:2] == ["What to do", "Ranking"]
    assert {"By kernel", "By filesystem type", "Distribution", "Trend"} <= {*titles[2:]}
    assert titles[-2:] == ["Coverage", "Not ok"]


def test_text_lets_no_name_act_on_the_terminal(hostile, monkeypatch):
    root, _ = hostile
    monkeypatch.setenv("COLUMNS", "80")
    text = render(root, "text")
    assert all(char.isprintable() or char == "\n" for char in text)
    assert max(map(cell_len, text.splitlines())) <= 80
    unfolded_text = re.sub(r"\s+", "", text)
    assert r"\x1b[31mred" in unfolded_text
    assert "[bold]markup[" in unfolded_text  # shown as text, not as markup


def test_csv_lets_no_name_be_a_formula_or_a_line(hostile):
    root, _ = hostile
    text = render(root, "csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) == len(HOSTILE_NAMES) + 1
    for row in rows[1:]:
        for cell in row:
            assert cell.isprintable()
            assert not cell.lstrip()[:1] or (cell.lstrip()[0] not in "=+@" and not re.match(r"-[^\d]", cell.lstrip()))


def test_markdown_lets_no_name_be_html_a_link_or_a_column(hostile):
    root, _ = hostile
    text = render(root, "markdown")
    assert "<" not in text
    assert "://" not in text
    assert not re.search(r"(?<!\\)[`*\[]", text)
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_json_keeps_every_name_as_it_is_in_ascii(hostile):
    root, _ = hostile
    text = render(root, "json")
    assert text.isascii()
    assert sorted(row["target"] for row in json.loads(text)["host_waste"]) == sorted(HOSTILE_NAMES)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (-1536, "-1.50 KiB"),
        (10_235, "10.0 KiB"),
        (1_023_000, "999 KiB"),
        (1_023_900, "0.98 MiB"),
        (5_988_978_688, "5.58 GiB"),
        (7_990_149_120, "7.44 GiB"),
        (2**63 - 1, "8.00 EiB"),
    ],
)
def test_bytes_for_humans_have_three_digits(count, text):
    assert human_bytes(count) == text
