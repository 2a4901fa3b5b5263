"""Commands say that a run is dated in the future, and after what it should have been dated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli, query, warehouse
from tests import program
from tests.warehouse.outcomes import STARTED_AT, ok, publish, run

PAST, FUTURE = "20251101T000000Z-aaaaaaaa", "22350101T000000Z-bbbbbbbb"
DAY_US = 86_400_000_000
FUTURE_START = 8_362_742_400_000_000  # 2235-01-03T00:00:00Z
NOTE = f"run {FUTURE} of nightly is dated 2235-01-03 00:00 UTC, in the future (now: "
REMEDY = f"): is its clock wrong, or that of this machine? If its own is, lru-audit expire --run {FUTURE} removes it"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run of a clock that was ahead, then one of a clock that was right."""
    root = tmp_path_factory.mktemp("clocks")
    publish(root, ok("ahead"), audit="nightly", run_id=FUTURE, started_at=FUTURE_START)
    publish(root, ok("right"), audit="nightly", run_id=PAST)
    return root


@pytest.mark.parametrize("format_name", ["text", "html", "markdown", "csv", "json", "parquet", "prometheus"])
def test_a_report_in_each_format_is_of_the_run_that_is_not_in_the_future_and_says_so(root, tmp_path, format_name):
    path = tmp_path / "report"
    process = program.run("report", "-w", root, "--format", format_name, "-o", path)
    assert process.returncode == cli.OK
    content = path.read_bytes().decode(errors="replace")
    assert "right" in content
    assert 'target="ahead"' not in content
    notes = process.stderr if format_name in ("csv", "parquet", "prometheus") else content
    # Terminals fold lines, and Markdown escapes some characters.
    words = " ".join(notes.replace("\\", "").split())
    assert NOTE.removeprefix("run") in words
    assert REMEDY.removesuffix(" removes it") in words


def test_metrics_count_the_runs_in_the_future(root):
    process = program.run("report", "-w", root, "--format", "prometheus")
    assert 'list_lru_audit_runs_in_future{audit="nightly"} 1.0' in process.stdout
    assert f'list_lru_audit_run_timestamp_seconds{{audit="nightly"}} {STARTED_AT // 1_000_000:.9g}' in process.stdout


@pytest.mark.parametrize("command", [["runs"], ["runs", "--format", "json"], ["verify"], ["verify", "latest"]])
def test_the_list_of_runs_and_their_verification_say_so(root, command):
    process = program.run(*command, "-w", root)
    assert process.returncode == cli.OK, "the files are as they were written"
    line = process.stderr.splitlines()[0]
    assert line.startswith(NOTE)
    assert line.endswith(REMEDY)


def test_runs_are_listed_in_the_order_in_which_they_were_made(root):
    listed_runs = json.loads(program.run("runs", "--format", "json", "-w", root).stdout)
    assert [listed_run["run_id"] for listed_run in listed_runs] == [FUTURE, PAST]


def test_a_run_during_which_the_clock_was_set_back_has_no_duration(root):
    ahead, right = json.loads(program.run("runs", "--format", "json", "-w", root).stdout)
    assert ahead["duration_ms"] is None
    assert right["duration_ms"] > 0
    line = next(line for line in program.run("runs", "-w", root).stdout.splitlines() if line.startswith(FUTURE))
    assert line.split()[3:6] == ["2235-01-03", "00:00:00", "1"], "nothing between its start and its targets"


def test_one_note_counts_the_runs_of_an_audit(tmp_path):
    for number in range(3):
        publish(
            tmp_path, ok("a"), audit="nightly", run_id=f"2235010{number + 1}T000000Z-bbbbbbbb", started_at=FUTURE_START
        )
    publish(tmp_path, ok("a"), audit="weekly", run_id=PAST, started_at=FUTURE_START)
    first, second = program.run("runs", "-w", tmp_path).stderr.splitlines()
    assert first.startswith("run 22350103T000000Z-bbbbbbbb of nightly (and 2 more) is dated 2235-01-03")
    assert second.startswith(f"run {PAST} of weekly is dated 2235-01-03")


def test_without_another_run_the_report_shows_the_one_in_the_future_and_says_so(tmp_path):
    publish(tmp_path, ok("ahead"), audit="nightly", run_id=FUTURE, started_at=FUTURE_START)
    output = " ".join(program.run("report", "-w", tmp_path).stdout.split())
    assert output.startswith(f"Run {FUTURE} of audit nightly")
    assert NOTE.removeprefix("run") in output


@pytest.mark.parametrize("clock", ["ahead", "behind"])
def test_a_run_says_at_its_end_that_its_date_cannot_be_true(tmp_path, clock):
    publish(tmp_path, ok("a"), audit="nightly", run_id=PAST)
    start = FUTURE_START if clock == "ahead" else STARTED_AT - 365 * DAY_US
    staging = warehouse.Staging.create(tmp_path, run(FUTURE, audit="nightly", started_at=start))
    staging.append(ok("a"))
    del staging
    process = program.run("publish", FUTURE, "-w", tmp_path, "--quiet")
    assert process.returncode == cli.OK
    output = " ".join(process.stdout.split())
    if clock == "ahead":
        assert NOTE.removeprefix("run") in output
    else:
        later = f"though run {PAST} of 2025-11-23 12:13 UTC was published before it started"
        assert f"{FUTURE} is dated 2024-11-23 12:13 UTC, {later}: was a clock wrong?" in output


def test_after_the_removal_nothing_is_said(root):
    process = program.run("expire", "--run", "2235", "-w", root)
    assert process.returncode == cli.OK
    assert program.run("runs", "-w", root).stderr == ""
    assert "future" not in program.run("report", "-w", root).stdout


def test_the_output_of_a_query_is_opened_before_it_runs(root, tmp_path, monkeypatch):
    monkeypatch.setattr(query, "run_confined", lambda *_: pytest.fail("the query ran"))
    process = program.run("sql", "SELECT 1", "-o", tmp_path / "absent" / "rows.csv", "-w", root)
    assert process.returncode == cli.FAILED
    assert "No such file or directory" in process.stderr
