"""Hostile SQL is refused or bounded, under Landlock and without, and nothing is written or disclosed.

Every statement runs in a child process, as in `lru-audit sql`. Outside the warehouse lie a text and a Parquet file with
a secret, inside it links to both; the secret is also in the environment. `make test` tries one statement of each kind.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.query import landlock
from tests import campaign
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish

SECRET = f"canary-{secrets.token_hex(8)}"
LIMITS = query.Limits(timeout_s=240, memory_bytes=256 << 20, result_bytes=4 << 20)
NEEDS_LANDLOCK = pytest.mark.skipif(landlock.abi() == 0, reason="needs Landlock")
# The number of statements of a kind that `make test-faults` samples.
SAMPLE = 3

REFUSED_STATEMENTS = {
    "writing": [
        "COPY targets TO '{out}'",
        "COPY targets TO '{published}'",
        "COPY (SELECT 1) TO '{out}' (FORMAT parquet)",
        "COPY (SELECT 1) TO '{warehouse}/runs/x.parquet'",
        "WITH x AS (COPY targets TO '{out}') SELECT * FROM x",
        "WITH x AS (COPY targets TO '{published}') SELECT * FROM x",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
        "/* SELECT */ COPY targets TO '{out}' -- SELECT 1",
        "EXPORT DATABASE '{out}'",
        "IMPORT DATABASE '{warehouse}'",
        "FROM enable_logging(storage = 'file', storage_path = '{out}')",
        "WITH l AS (FROM enable_logging(storage = 'file', storage_path = '{out}')) SELECT write_log('') FROM l",
        "FROM enable_profiling(save_location = '{out}')",
        "CREATE TABLE z AS SELECT 1",
        "CREATE TEMP TABLE z AS SELECT 1",
        "CREATE OR REPLACE VIEW targets AS SELECT 1",
        "CREATE MACRO f() AS 1",
        "DROP VIEW targets",
        "INSERT INTO _memory_targets (target) VALUES ('x')",
        "WITH x AS (INSERT INTO _memory_targets (target) VALUES ('x') RETURNING *) FROM x",
        "UPDATE _memory_targets SET target = 'x'",
        "DELETE FROM _memory_targets",
        "ALTER TABLE _memory_targets ADD COLUMN x INT",
        "DELETE FROM _memory_runs",
        "WITH x AS (DELETE FROM _memory_runs RETURNING *) FROM x",
        "CREATE OR REPLACE MACRO newest_run_id() AS 'x'",
    ],
    "other databases, extensions, settings, secrets": [
        "ATTACH '{out}' AS f",
        "ATTACH ':memory:' AS m",
        "DETACH memory",
        "USE memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '{canary}'",
        "UPDATE EXTENSIONS",
        "SET enable_external_access = true",
        "SET allowed_paths = ['{canary}']",
        "SET VARIABLE x = 1",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "PRAGMA memory_limit = '100GB'",
        "CALL pragma_version()",
        "CALL enable_logging()",
        "CHECKPOINT",
        "FROM force_checkpoint()",
        "VACUUM",
        "ANALYZE",
        "BEGIN",
        "COMMIT",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "CREATE SECRET (TYPE s3)",
        "FROM duckdb_secrets()",
    ],
    "reading files other than the warehouse's tables": [
        "FROM '{canary}'",
        "FROM '{parquet_canary}'",
        "FROM '/etc/passwd'",
        "FROM read_text('{canary}')",
        "FROM read_blob('{canary}')",
        "FROM read_csv('{canary}')",
        "FROM read_json('{canary}')",
        "FROM read_parquet('{parquet_canary}')",
        "FROM parquet_metadata('{parquet_canary}')",
        "FROM parquet_schema('{parquet_canary}')",
        "FROM sniff_csv('{canary}')",
        "FROM read_duckdb('{canary}')",
        "FROM read_text('{warehouse}/../canary.csv')",
        "FROM read_text('{published}/../../../canary.csv')",
        "FROM read_text('file://{canary}')",
        "FROM read_text('{link}')",
        "FROM read_parquet('{parquet_link}')",
        "FROM read_parquet('{warehouse}/runs/*/*.parquet')",
        "FROM glob('{warehouse}/*')",
        "FROM glob('/etc/*')",
        "FROM read_text('/proc/self/environ')",
        "FROM read_blob('/proc/self/fd/0')",
        "FROM read_csv('/dev/stdin')",
        "FROM query('FROM read_text(''{canary}'')')",
        "FROM query('COPY targets TO ''{out}''')",
        "FROM query_table('{canary}')",
        "FROM read_csv('http://127.0.0.1:9/x.csv')",
        "FROM 'https://127.0.0.1:9/x.csv'",
        "FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT getenv('LRU_CANARY')",
    ],
    "Python variables, which DuckDB reads as tables by default": [
        "FROM request",
        "FROM dataset",
        "FROM arrow_scan(1, 2, 3)",
    ],
    "more than one statement, or none": [
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY targets TO '{out}'",
        "SELECT 1 /* ; */ ; -- \nDROP VIEW targets",
        "",
        ";",
        "-- only a comment",
        "SELECT '\ud800'",
        "(" * 50_000 + "1",
    ],
}

# Statements that may return a result within the limits.
HARMLESS_STATEMENTS = [
    "FROM enable_logging(storage = 'stdout')",
    "FROM disable_logging()",
    "SELECT write_log('x')",
    "FROM checkpoint()",
    "FROM duckdb_settings()",
    "SELECT current_setting('allowed_paths')",
    "FROM duckdb_logs()",
    "FROM query_table('targets')",
    "SELECT 1 \x01",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT repeat('x', 100000000)",
    "SELECT repeat('x', 10000000000)",
    "FROM read_parquet('{published}')",
]

ENDLESS_STATEMENTS = [
    "SELECT count(*) FROM range(10000000) a, range(10000000) b, range(10000000) c WHERE a.range + b.range > c.range",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n FROM t) SELECT count(*) FROM t",
    "SELECT sleep_ms(1000000000)",
    "SELECT list(range) FROM range(100000000000)",
    "SELECT string_agg(repeat('x', 1000000)) FROM range(1000000000)",
    "SELECT a.range, count(*) FROM range(1000000000) a GROUP BY ALL ORDER BY 2",
    "FROM range(1000000000000)",
    "SELECT repeat('x', 1000000) FROM range(1000000000)",
    "SELECT count(*) FROM range(1000000000000) WHERE regexp_matches(range::VARCHAR, '(1+)+$')",
]
LIMIT_ERRORS = r"--timeout|--memory|the result is larger than 4\.00 MiB"


class Scenario(NamedTuple):
    """The folder of the warehouse and of the secrets, and the paths for the placeholders in statements."""

    folder: Path
    names: dict[str, str]

    def tables(self):
        return warehouse.tables(Path(self.names["warehouse"]))

    def ask(self, statement: str, limits: query.Limits = LIMITS, **params: str) -> pa.Table | str:
        """Return the result or the error of a statement."""
        try:
            return query.run_confined(self.tables(), fill_in(statement, self.names), params, limits)
        except query.QueryError as error:
            return str(error)


def fill_in(statement: str, names: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: names[name[1]], statement)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Return the content of each file and link in the folder and in DuckDB's own, by path."""
    contents: dict[str, bytes | str | None] = {}
    for top in (folder, Path.home() / ".duckdb"):
        for path in sorted(top.rglob("*")):
            contents[str(path)] = (
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            )
    return contents


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    root = folder / "warehouse"
    directory = publish(root, ok("a"), ok("né\x1b|c", mounts=3), failure("b"), audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4, nodes=2, cache_ids=94), audit="prod", started_at=STARTED_AT + 86_400_000_000)
    names = {
        "warehouse": str(root),
        "published": str(directory / "targets-00000.parquet"),
        "canary": str(folder / "canary.csv"),
        "parquet_canary": str(folder / "canary.parquet"),
        "link": str(root / "runs" / "link.csv"),
        "parquet_link": str(directory / "memcgs-00001.parquet"),
        "out": str(folder / "out"),
    }
    Path(names["canary"]).write_text(f"name\n{SECRET}\n")
    pq.write_table(pa.table({"name": [SECRET]}), names["parquet_canary"])
    Path(names["link"]).symlink_to(names["canary"])
    Path(names["parquet_link"]).symlink_to(names["parquet_canary"])
    return Scenario(folder, names)


@pytest.fixture(params=[pytest.param("landlock", marks=NEEDS_LANDLOCK), "arrow"])
def ask(request, monkeypatch, scenario) -> Iterator[Callable[..., pa.Table | str]]:
    """A function that returns the answer to a statement, which must not have written anything."""
    monkeypatch.setenv("LRU_CANARY", SECRET)
    if request.param == "arrow":
        monkeypatch.setattr(landlock, "abi", lambda: 0)
    tree_before = tree(scenario.folder)
    yield scenario.ask
    assert tree(scenario.folder) == tree_before


def statement_id(statement: str) -> str:
    return ascii(statement[:60])


def assert_one_line(answer: str) -> None:
    assert answer.isprintable()
    assert "Traceback" not in answer
    assert SECRET not in answer


@pytest.mark.parametrize(
    "statement",
    [case for cases in REFUSED_STATEMENTS.values() for case in campaign.example_and_faults(cases, SAMPLE)],
    ids=statement_id,
)
def test_a_hostile_statement_is_refused(ask, statement):
    answer = ask(statement)
    assert isinstance(answer, str), answer
    assert_one_line(answer)


@pytest.mark.parametrize("statement", campaign.example_and_faults(HARMLESS_STATEMENTS, SAMPLE), ids=statement_id)
def test_a_strange_statement_does_no_harm(ask, statement):
    answer = ask(statement)
    if isinstance(answer, str):
        assert_one_line(answer)
    else:
        assert SECRET not in str(answer.to_pydict())


@pytest.mark.faults
@pytest.mark.parametrize("statement", campaign.sample(ENDLESS_STATEMENTS, SAMPLE), ids=statement_id)
def test_a_statement_without_end_is_ended_by_a_limit(ask, statement):
    answer = ask(statement, dataclasses.replace(LIMITS, timeout_s=4))
    assert isinstance(answer, str)
    assert re.search(LIMIT_ERRORS, answer), answer
    assert_one_line(answer)
