"""Hostile names of every kind in every output: each is judged by a reader of that format, and no character is lost.

Two warehouses are published from made outcomes: one has hostile names in each column of text, the other harmless ones
in their places. What a reader finds besides the names must be the same in both.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from pipeline.common.text import escape_surrogates
from pipeline.warehouse import schema
from pipeline.warehouse.outcome import HOST_TABLES
from tests.program import run
from tests.warehouse.outcomes import dying_pages, failure, ok, publish, table

NAMES = [
    "\x1b]0;title\x07\x1b[2J",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x9b31m\x90q\x9c",
    "\r\x08\x7f\x00",
    "new\nline\x0b\x0c\x85\u2028\u2029",
    "\u202eright to left\u2066\u2067\u2069",
    "zero\u200b\u200d\ufeff\u00ad\U000e0041",
    "a" + 300 * "\u0336",
    "\ue000\uffff\U0010ffff",
    "=1+1",
    "\t=1+1",
    " \r\n+1",
    "\uff1d1",
    "\u00a0-1+1|' /C calc'!A0",
    "@SUM(A1)",
    "'; DROP TABLE targets; --",
    "$x {{7*7}} %s {0} \\x1b",
    "<script>alert(1)</script><!--",
    "\"' onmouseover=alert(1) x=",
    "</style></title></textarea>]]>&lt;&#60;",
    "[text](javascript:alert) ![x](http://evil) <http://evil> www.evil.org",
    "*a* _b_ ~~c~~ `d` | e ||| # f",
    "- x\n\n# y\n| --- |",
    "1. x\\",
    '"} 1\n# HELP x y\nx{a="',
    "[bold red]markup[/] :smile:",
    "long" * 1_200,
]
PATHS = ["\udcff", "\udced\udca0\udc80\x1b[2J"]
"""Bytes that are not UTF-8, as Python has them in paths; a host cannot send them."""
AUDIT = "\x1b[2J<b>'; | =1 \u202e"
TEXTS = {
    name: [column.name for column in schema.tables()[name].columns if column.type == "string" and not column.values]
    for name in ("targets", "attempts", *HOST_TABLES)
}
# Columns of the program itself. The names of list_lrus and of layouts decide what is counted.
OWN_COLUMNS = {"run_id", "target", "kind", "carried_from", "input_digest", "status", "part", "layout", "lazy_basis"}


def with_names(outcome: dict[str, Any], name: str) -> dict[str, Any]:
    """Put a name into each column of text of an outcome, followed by the column's name."""
    paths = escape_surrogates(name) == name
    for column in TEXTS["targets"]:
        if column in outcome["row"] and outcome["row"][column] is not None and column not in OWN_COLUMNS:
            outcome["row"][column] = f"{name} {column}"
    if paths and outcome["tables"]:
        outcome["row"] |= {column: f"{name} {column}" for column in ("notes", "slab_cache", "kernel_version")}
    outcome["row"]["labels"] = {"rack": name, f"{name} label": "1"}
    for attempt in outcome["attempts"]:
        attempt |= {column: f"{name} {column}" for column in ("node", "error_type", "error")}
    for table_name, content in outcome["tables"].items():
        rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
        for row in rows:
            row |= {column: f"{name} {column}" for column in TEXTS[table_name] if column not in OWN_COLUMNS}
        outcome["tables"][table_name] = table(rows)
    return outcome


def outcomes(names: Sequence[str], paths: Sequence[str]) -> list[dict[str, Any]]:
    hosts = []
    for name in names:
        host = ok(f"{name} target")
        host["tables"]["dying_memcg_pages"] = table([dying_pages("file", pages=3, path="")])
        hosts.append(with_names(host, name))
    failures = [with_names(failure(f"{name} failed", error="x"), name) for name in (*names, *paths)]
    return hosts + failures


class Published(NamedTuple):
    """A warehouse, and the rows (kind, target, name) that it must have."""

    root: Path
    names: set[tuple[str, str, str]]

    def run(self, *args: str | Path) -> str:
        """Return what a command prints, whose messages must be harmless as well."""
        process = run(*args, "-w", self.root)
        assert process.returncode == 0, process.stderr
        assert_harmless(process.stderr)
        return process.stdout


def make(root: Path, names: Sequence[str], paths: Sequence[str], audit: str) -> Published:
    expected = set()
    target_outcomes = outcomes(names, paths)
    for outcome in target_outcomes:
        target = escape_surrogates(outcome["target"])
        rows = {"targets": [outcome["row"]], "attempts": outcome["attempts"]}
        for name, content in outcome["tables"].items():
            rows[name] = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
        for name, table_rows in rows.items():
            for column in set(TEXTS[name]) - OWN_COLUMNS:
                texts = {row[column] for row in table_rows if row.get(column) is not None}
                expected |= {(f"{name}.{column}", target, escape_surrogates(text)) for text in texts}
        expected |= {("label", target, escape_surrogates(key)) for key in outcome["row"]["labels"]}
    publish(root, *target_outcomes, audit=audit)  # the command verify makes the checks
    return Published(root, expected)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return make(tmp_path_factory.mktemp("names") / "it's \x1b[2J\n; DROP -- é", NAMES, PATHS, AUDIT)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Published:
    names = [f"name{number:02}" for number in range(len(NAMES))]
    return make(tmp_path_factory.mktemp("names") / "warehouse", names, ["path1", "path2"], "prod")


def assert_harmless(text: str) -> None:
    """No character of a text acts on a terminal: no control, format or private character, no other line end."""
    acting = {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}}
    assert acting <= {"\n"}, acting
    assert not {char for char in text if unicodedata.category(char) == "Zs"} - {" "}


class Tags(HTMLParser):
    """The elements of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag, tuple(name for name, _ in attrs)] += 1
        for name, value in attrs:
            assert name not in ("href", "src") or value == "https://git.kernel.org/torvalds/c/5abc1e37afa0"

    def handle_comment(self, data: str) -> None:
        self.counts["comment"] += 1

    def unknown_decl(self, data: str) -> None:
        self.counts["declaration"] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def names_query() -> str:
    parts = [
        f"SELECT '{name}.{column}' AS kind, target, {column} AS name FROM {name}"
        for name, columns in TEXTS.items()
        for column in columns
        if column not in OWN_COLUMNS
    ]
    parts.append("SELECT 'label', target, unnest(map_keys(labels)) FROM targets")
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}) WHERE name IS NOT NULL"


def test_each_name_is_in_the_outputs_of_programs_as_it_was_given(hostile: Published, tmp_path: Path) -> None:
    """In JSON, JSON lines and Parquet, and in the warehouse's own files for a DuckDB that reads them itself."""
    results = [json.loads(hostile.run("sql", "--format", "json", names_query()))]
    lines = hostile.run("sql", "--format", "jsonl", names_query())
    assert lines.isascii()
    results.append([json.loads(line) for line in lines.splitlines()])
    hostile.run("sql", "--format", "parquet", "-o", tmp_path / "x", names_query())
    results.append(pq.read_table(tmp_path / "x").to_pylist())
    connection = duckdb.connect()
    connection.execute(hostile.run("sql", "--print-init"))
    results.append(connection.sql(names_query()).to_arrow_table().to_pylist())
    for rows in results:
        assert {(row["kind"], row["target"], row["name"]) for row in rows} == hostile.names
    name = "'; DROP TABLE targets; -- target"
    (row,) = json.loads(
        hostile.run("sql", "--format", "json", "--param", f"t={name}", "FROM host_waste WHERE target = $t")
    )
    assert row["target"] == name


def test_the_report_for_programs_has_each_name(hostile: Published) -> None:
    text = hostile.run("report", "--format", "json")
    assert text.isascii()
    report = json.loads(text)
    assert report["run"]["audit"] == AUDIT
    assert {row["target"] for row in report["host_waste"]} == {f"{name} target" for name in NAMES}
    assert {row["error"] for row in report["not_ok"]} == {escape_surrogates(f"{name} error") for name in NAMES + PATHS}
    (run_row,) = json.loads(hostile.run("runs", "--format", "json"))
    assert run_row["audit"] == AUDIT
    (manifest,) = hostile.root.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["audit"] == AUDIT


@pytest.mark.parametrize("command", ["report", "sql", "runs", "verify", "expire", "plan"])
def test_a_terminal_gets_text_only(
    hostile: Published, harmless: Published, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    args = {"sql": [names_query()], "expire": ["--keep-last", "1", "--dry-run"], "plan": ["live:"]}.get(command, [])
    text = hostile.run(command, *args)
    assert_harmless(text)
    if command == "sql":
        assert len(text.splitlines()) == len(hostile.names) + 2
    elif command != "report":  # whose tables fold names
        assert len(text.splitlines()) == len(harmless.run(command, *args).splitlines())


@pytest.mark.parametrize("command", ["report", "sql"])
def test_a_spreadsheet_gets_no_formula_and_no_other_cell(hostile: Published, command: str) -> None:
    text = hostile.run(command, "--format", "csv", *([names_query()] if command == "sql" else []))
    assert_harmless(text)
    header, *rows = csv.reader(io.StringIO(text))
    assert len(rows) == (len(NAMES) if command == "report" else len(hostile.names))
    for row in rows:
        assert len(row) == len(header)
        for cell in row:
            first = unicodedata.normalize("NFKC", cell.lstrip()[:1])
            assert first not in ("=", "+", "@", "|", "\t", "\r")
            assert first != "-" or re.fullmatch(r"-?[\d.]+", cell)


@pytest.mark.parametrize("command", ["report", "sql"])
def test_markdown_gets_no_markup(hostile: Published, harmless: Published, command: str) -> None:
    pages = []
    for warehouse in (hostile, harmless):
        text = warehouse.run(command, "--format", "markdown", *([names_query()] if command == "sql" else []))
        assert_harmless(text)
        assert not re.search(r"://|www\.", text)
        renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        pages.append(Tags(renderer.render(text)).counts)
    if command == "report":
        assert pages[0] == pages[1]
    assert pages[0].keys() == pages[1].keys()


def test_a_page_has_no_element_and_no_attribute_of_a_name(hostile: Published, harmless: Published) -> None:
    pages = [warehouse.run("report", "--format", "html") for warehouse in (hostile, harmless)]
    assert_harmless(pages[0])
    hostile_tags, harmless_tags = map(Tags, pages)
    for tags in (hostile_tags, harmless_tags):
        assert tags.counts.pop(("title", ())) > 1  # of the page, and of each name that a chart cuts
    assert hostile_tags.counts == harmless_tags.counts
    assert "<script>alert(1)</script><!-- target" in hostile_tags.text
    script = re.search(r'id="ranking-rows">(.*?)</script>', pages[0], re.DOTALL)
    assert script
    ranking = json.loads(script[1])
    assert len(ranking["rows"]) == len(NAMES)
    for row in ranking["rows"]:
        assert_harmless("".join(cell for cell in row if isinstance(cell, str)))


def test_prometheus_gets_the_series_of_each_host_once(hostile: Published, harmless: Published) -> None:
    counts = []
    for warehouse in (hostile, harmless):
        text = warehouse.run("report", "--format", "prometheus")
        assert_harmless(text)
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
        assert len(set(keys)) == len(keys)
        counts.append(Counter((sample.name, tuple(sorted(sample.labels))) for sample in samples))
    assert counts[0] == counts[1]
