"""Hostile SQL is refused or bounded, under Landlock and without, and nothing is written or disclosed.

Every statement runs in a child as `lru-audit sql` runs it. Beside the warehouse stand a text and a Parquet file with a
secret, and links to both inside the warehouse; the secret is in the environment, too.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.query import landlock
from tests.warehouse.outcomes import STARTED_AT, failed, ok, publish

SECRET = f"canary-{secrets.token_hex(8)}"
LIMITS = query.Limits(timeout_s=240, memory_bytes=256 << 20, result_bytes=4 << 20)
NO_LANDLOCK = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
MODES = [pytest.param("landlock", marks=NO_LANDLOCK), "arrow"]

REFUSED = [
    # writing
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
    "INSERT INTO memory_targets (target) VALUES ('x')",
    "WITH x AS (INSERT INTO memory_targets (target) VALUES ('x') RETURNING *) FROM x",
    "UPDATE memory_targets SET target = 'x'",
    "DELETE FROM memory_targets",
    "ALTER TABLE memory_targets ADD COLUMN x INT",
    "DELETE FROM memory_runs",
    "WITH x AS (DELETE FROM memory_runs RETURNING *) FROM x",
    "CREATE OR REPLACE MACRO newest_run_id() AS 'x'",
    # other databases, extensions, settings, secrets
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
    # reading what is not in the warehouse
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
    # Python's variables
    "FROM request",
    "FROM dataset",
    "FROM arrow_scan(1, 2, 3)",
    # more than one statement, or none
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY targets TO '{out}'",
    "SELECT 1 /* ; */ ; -- \nDROP VIEW targets",
    "",
    ";",
    "-- only a comment",
    "SELECT '\ud800'",
    "(" * 50_000 + "1",
]

# They may answer, within their bounds.
BOUNDED = [
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

ENDLESS = [
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
IN_BOUNDS = r"--timeout|--memory|the result is larger than 4\.00 MiB"


class Place(NamedTuple):
    """Where statements are hostile: the folder of everything, and what their placeholders stand for."""

    folder: Path
    names: dict[str, str]

    def tables(self):
        return warehouse.tables(Path(self.names["warehouse"]))

    def ask(self, statement: str, limits: query.Limits = LIMITS, **params: str) -> pa.Table | str:
        """Return the result or the error of a statement."""
        try:
            return query.ask(self.tables(), filled(statement, self.names), params, limits)
        except query.QueryError as error:
            return str(error)


def filled(statement: str, names: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: names[name[1]], statement)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything in the folder, and in DuckDB's own."""
    found: dict[str, bytes | str | None] = {}
    for top in (folder, Path.home() / ".duckdb"):
        for path in sorted(top.rglob("*")):
            found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    root = folder / "warehouse"
    published = publish(root, ok("a"), ok("né\x1b|c", mounts=3), failed("b"), audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4, nodes=2, cache_ids=94), audit="prod", started_at=STARTED_AT + 86_400_000_000)
    names = {
        "warehouse": str(root),
        "published": str(published / "targets-00000.parquet"),
        "canary": str(folder / "canary.csv"),
        "parquet_canary": str(folder / "canary.parquet"),
        "link": str(root / "runs" / "link.csv"),
        "parquet_link": str(published / "memcgs-00001.parquet"),
        "out": str(folder / "out"),
    }
    Path(names["canary"]).write_text(f"name\n{SECRET}\n")
    pq.write_table(pa.table({"name": [SECRET]}), names["parquet_canary"])
    Path(names["link"]).symlink_to(names["canary"])
    Path(names["parquet_link"]).symlink_to(names["parquet_canary"])
    return Place(folder, names)


@pytest.fixture(scope="module", params=MODES)
def answers(request, place):
    """Every hostile statement's answer, some at a time, and the tree before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRU_CANARY", SECRET)
        if request.param == "arrow":
            patch.setattr(landlock, "abi", lambda: 0)
        before = tree(place.folder)
        short = dataclasses.replace(LIMITS, timeout_s=4)
        with ThreadPoolExecutor(4) as pool:
            limits = [short if statement in ENDLESS else LIMITS for statement in REFUSED + BOUNDED + ENDLESS]
            found = dict(
                zip(REFUSED + BOUNDED + ENDLESS, pool.map(place.ask, REFUSED + BOUNDED + ENDLESS, limits), strict=True)
            )
    return found, before, tree(place.folder)


def shown(statement: str) -> str:
    return ascii(statement[:60])


def assert_one_line(answer: str) -> None:
    assert answer.isprintable()
    assert "Traceback" not in answer
    assert SECRET not in answer


@pytest.mark.parametrize("statement", REFUSED, ids=shown)
def test_a_hostile_statement_is_refused(answers, statement):
    answer = answers[0][statement]
    assert isinstance(answer, str), answer
    assert_one_line(answer)


@pytest.mark.parametrize("statement", BOUNDED, ids=shown)
def test_a_strange_statement_does_no_harm(answers, statement):
    answer = answers[0][statement]
    if isinstance(answer, str):
        assert_one_line(answer)
    else:
        assert SECRET not in str(answer.to_pydict())


@pytest.mark.parametrize("statement", ENDLESS, ids=shown)
def test_a_statement_without_end_is_ended_by_a_limit(answers, statement):
    answer = answers[0][statement]
    assert isinstance(answer, str)
    assert re.search(IN_BOUNDS, answer), answer
    assert_one_line(answer)


def test_nothing_was_written_anywhere(answers):
    _, before, after = answers
    assert after == before
