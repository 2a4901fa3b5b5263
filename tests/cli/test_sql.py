"""The sql command: queries from arguments, files and stdin, every output, and an error of one line for bad input."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli, query
from pipeline.cli import sql as command
from pipeline.common.errors import UsageError
from pipeline.report import rows
from pipeline.report.model import build_report
from pipeline.report.rows import FormatError
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

DAY = 86_400_000_000
RUNS = ["20250101T000000Z-00000001", "20250102T000000Z-00000002", "20250103T000000Z-00000003"]
HOSTILE = "né\x1b[2J|=1+1\n<b>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with two runs of audit prod and one of audit lab."""
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("a"), failure("b"), run_id=RUNS[0], audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4), ok(HOSTILE), run_id=RUNS[1], audit="prod", started_at=STARTED_AT + DAY)
    publish(root, ok("x"), run_id=RUNS[2], audit="lab", started_at=STARTED_AT + 2 * DAY)
    return root


@pytest.fixture
def sql(root: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Any:
    """A function that runs the command on the warehouse and returns its stdout."""

    def run(*args: str | Path) -> bytes:
        command.run(cli.parser().parse_args(["sql", "-w", str(root), *map(str, args)]))
        sys.stdout.flush()
        return capsysbinary.readouterr().out

    return run


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_query_comes_from_an_argument_a_file_or_stdin(sql, tmp_path, monkeypatch):
    text = "-- é\nSELECT target FROM targets WHERE target = $name AND attempts >= $n ORDER BY run_id"
    (tmp_path / "query.sql").write_bytes(b"\xef\xbb\xbf" + text.encode())
    set_stdin(monkeypatch, text.encode())
    params = ("--param", "name=a", "--param", "n=1", "--format", "json")
    for query_args in ((text,), ("-f", tmp_path / "query.sql"), ("-",)):
        assert json.loads(sql(*query_args, *params)) == [{"target": "a"}, {"target": "a"}]


def test_run_and_audit_choose_what_the_views_are_about(sql):
    def runs(*options: str) -> list[str]:
        ranking = sql("SELECT DISTINCT run_id FROM host_waste", "--format", "json", *options)
        all_runs = sql("SELECT run_id FROM runs ORDER BY ALL", "--format", "json", *options)
        return [json.loads(ranking)[0]["run_id"], *(row["run_id"] for row in json.loads(all_runs))]

    assert runs() == [RUNS[2], *RUNS]
    assert runs("--audit", "prod") == [RUNS[1], RUNS[0], RUNS[1]]
    assert runs("--run", RUNS[0][:8]) == [RUNS[0], RUNS[0]]
    assert runs("--run", "latest", "--audit", "prod") == [RUNS[1], RUNS[1]]
    assert runs("--run", "latest") == [RUNS[2], RUNS[2]]


def test_the_latest_run_is_the_one_that_report_shows(sql, tmp_path):
    publish(tmp_path, ok("a"), run_id=RUNS[0], audit="prod", started_at=STARTED_AT)
    publish(tmp_path, ok("a"), run_id=RUNS[1], audit="adhoc", started_at=STARTED_AT + DAY)
    report_run_id = build_report(session(tmp_path)).run_id
    output = sql("SELECT run_id FROM runs", "--format", "json", "-w", tmp_path, "--run", "latest")
    assert report_run_id == json.loads(output)[0]["run_id"] == RUNS[0]


def test_the_output_is_a_file_of_the_form_that_its_name_says(sql, tmp_path):
    text = "SELECT target, attempts FROM targets ORDER BY ALL"
    for suffix in ("csv", "json", "jsonl", "md", "parquet", "txt"):
        assert sql(text, "-o", tmp_path / f"out.{suffix}") == b""
    assert (tmp_path / "out.csv").read_text().startswith("target,attempts\na,1\n")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 5
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "out.md").read_text().startswith("| target | attempts |\n")
    assert (tmp_path / "out.txt").read_text().startswith("target")
    assert pq.read_table(tmp_path / "out.parquet")["target"].to_pylist() == ["a", "a", "b", HOSTILE, "x"]
    assert len(list(tmp_path.iterdir())) == 6, "nothing unfinished is left"


def test_an_output_is_replaced_whole_or_not_at_all_and_a_device_is_written_to(sql, tmp_path):
    (tmp_path / "out.csv").write_text("the old one")
    with pytest.raises(query.QueryError):
        sql("SELECT error('no')", "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "the old one"
    sql("SELECT 1", "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link.csv").symlink_to("out.csv")
    sql("SELECT 1 AS n", "-o", tmp_path / "link.csv")
    assert (tmp_path / "out.csv").read_text() == "n\n1\n"


def test_parquet_goes_to_a_pipe_and_to_no_terminal(sql, monkeypatch):
    assert sql("SELECT 1 AS n", "--format", "parquet")[:4] == b"PAR1"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UsageError, match="terminal"):
        sql("SELECT 1", "--format", "parquet")


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "markdown"])
def test_a_hostile_name_acts_on_no_reader(sql, form):
    output = sql(
        "SELECT target AS \"a\x1b\", '=' || target AS b FROM targets WHERE target LIKE 'né%'", "--format", form
    )
    assert all(char.isprintable() or char == "\n" for char in output.decode())
    if form == "csv":
        assert "'=né" in output.decode()
    if form == "markdown":
        assert "<b>" not in output.decode()


def test_a_table_is_bounded_and_says_so(sql):
    lines = sql("SELECT range AS n, repeat('x', 600) AS long FROM range(2500)").decode().splitlines()
    assert len(lines) == 2 + 1_000 + 1
    assert lines[-1] == "the first 1,000 of 2,500 rows; another --format has them all"
    assert max(map(len, lines[:-1])) <= 510
    assert len(sql("FROM range(2500)", "--format", "csv").splitlines()) == 2_501


def test_a_plan_is_shown_as_duckdb_draws_it(sql):
    assert len(sql("EXPLAIN FROM runs").decode().splitlines()) > 4


def test_print_init_prints_absolute_paths_of_the_chosen_runs(sql, root, tmp_path):
    script = sql("--print-init", "--run", RUNS[0]).decode()
    assert f"'{root}/runs/{RUNS[0]}/targets-00000.parquet'" in script
    assert RUNS[1] not in script
    assert sql("--print-init", "-o", tmp_path / "audit.sql", "--run", RUNS[0]) == b""
    assert (tmp_path / "audit.sql").read_text() == script


@pytest.mark.parametrize(
    ("args", "content", "message"),
    [
        (["SELECT 1", "-f", "query.sql"], b"", "sql takes one query"),
        (["-f", "query.sql"], b"SELECT '\xff'", "query.sql: not UTF-8: invalid start byte at byte 8"),
        (["-f", "query.sql"], b"SELECT 1\0; DROP VIEW runs", "query.sql: contains a NUL character at byte 8"),
        (["-f", "query.sql"], b" " * (1 << 20) + b"SELECT 1", "longer than 1 MiB"),
        (["SELECT '\udcff'"], b"", "the query: not UTF-8"),
        (["SELECT $a", "--param", "a"], b"", "invalid --param 'a'; expected NAME=VALUE"),
        (["SELECT $a", "--param", "a b=1"], b"", "invalid --param 'a b=1'; expected NAME=VALUE"),
        (["SELECT $a", "--param", "a=1", "--param", "a=2"], b"", "--param a is given twice"),
        (["SELECT $a", "--param", "a=\udcff"], b"", "--param a: not UTF-8"),
        (["SELECT 1", "--print-init"], b"", "--print-init prints SQL and takes no query"),
    ],
)
def test_what_makes_no_sense_is_one_line(sql, tmp_path, monkeypatch, args, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query.sql").write_bytes(content)
    with pytest.raises(UsageError) as error:
        sql(*args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1", "the query does not use $a: it has no parameter"),
        ("SELECT $A", "the query does not use $b: it has $A"),
        ("EXPLAIN SELECT $c, $a", "the query does not use $b: it has $a, $c"),
    ],
)
def test_a_parameter_that_the_query_does_not_use_is_named(sql, text, message):
    with pytest.raises(query.QueryError) as error:
        sql(text, "--param", "a=1", "--param", "b=2")
    assert str(error.value) == message


def test_an_output_that_cannot_be_written_is_named_as_it_is_given(root, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for output, reason in (("nodir/x.csv", "No such file or directory"), (".", "Is a directory")):
        assert cli.main(["sql", "-w", str(root), "SELECT 1", "-o", output]) == cli.FAILED
        assert capfd.readouterr() == ("", f"lru-audit: {output}: {reason}\n")


@pytest.mark.parametrize("size", ["4GiB", "512MiB", "100M", "1 gb", "1.5GiB", "33554432"])
def test_a_size_is_as_people_write_it(size):
    bytes_ = {"4GiB": 4 << 30, "512MiB": 512 << 20, "100M": 10**8, "1 gb": 10**9, "1.5GiB": 3 << 29}.get(size, 1 << 25)
    assert cli.parser().parse_args(["sql", "SELECT 1", "--memory", size]).memory == bytes_


@pytest.mark.parametrize("size", ["4", "GiB", "-1GiB", "1XB", "1ib", "4GiB4", "1e9"])
def test_a_size_that_is_none_is_refused(size, capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["sql", "SELECT 1", "--memory", size])
    assert "--memory" in capsys.readouterr().err


def test_the_time_limit_is_said_in_one_line(root):
    command = [sys.executable, "-m", "pipeline", "sql", "-w", str(root), "--timeout", "2", "SELECT sleep_ms(100000000)"]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (cli.FAILED, "")
    assert process.stderr == "lru-audit: no result after 2 s; give it longer with --timeout\n"


def test_a_small_result_whose_text_is_enormous_takes_no_more_memory_than_the_query_may(sql, tmp_path):
    """A row has one byte, the index of a text of 200 kB; the text of all rows would have 20 GB."""
    (tmp_path / "query.sql").write_text(f"SELECT '{'x' * 200_000}'::ENUM('{'x' * 200_000}') AS e FROM range(100000)")
    hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(FormatError, match=r"more than 256 MiB of memory as csv: .* --memory$"):
        sql("-f", tmp_path / "query.sql", "--memory", "256MiB", "-o", tmp_path / "out.csv")
    assert resource.getrlimit(resource.RLIMIT_DATA) == hard_limit
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("value", ["1", "NULL", "['a', NULL]", "'a\nb'"])
def test_a_table_with_the_columns_of_explain_is_not_taken_for_a_plan_of_text(sql, value):
    output = sql(f"SELECT 'plan' AS explain_key, {value} AS explain_value", "--format", "table").decode()
    assert output == {"1": "1\n", "NULL": "", "['a', NULL]": '["a", null]\n', "'a\nb'": "a\nb\n"}[value]


def test_a_small_result_whose_text_is_endless_fills_no_disk(sql, tmp_path, monkeypatch):
    """JSON repeats a column's long name in each row."""
    monkeypatch.setattr(rows, "_MAX_CHARACTERS", 1 << 20)
    query_text = f'SELECT true AS "{"n" * 1000}" FROM range($rows::BIGINT)'
    with pytest.raises(FormatError, match=r"longer than 1\.00 MiB: select fewer rows or columns$"):
        sql(query_text, "--param", "rows=10000", "-o", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
    assert len(sql(query_text, "--param", "rows=1000", "--format", "jsonl").splitlines()) == 1000
