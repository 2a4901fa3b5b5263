"""What --print-init prints makes the same answers in a DuckDB that knows nothing of this project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from pipeline import query, warehouse
from tests.warehouse.outcomes import STARTED_AT, failed, ok, publish, session

EVERY_VIEW = """
import json, sys
import duckdb
try:
    import pipeline
    sys.exit("the project is importable")
except ImportError:
    pass
connection = duckdb.connect()
script = sys.stdin.read()
for _ in range(2):  # the second time replaces what the first has made
    connection.execute(script)
views = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
names = [name for (name,) in connection.execute(views).fetchall()]
rows = {}
for name in names:
    connection.execute(f"SELECT CAST(t AS VARCHAR) FROM {name} AS t ORDER BY ALL")
    rows[name] = [text for (text,) in connection.fetchall()]
settings = "SELECT current_setting('TimeZone'), current_setting('disabled_optimizers')"
print(json.dumps([rows, connection.execute(settings).fetchall()[0]]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("it's a warehouse") / "run_id=x"
    publish(root, ok("a"), ok("né\x1b|'c", mounts=3), failed("b"), audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4, nodes=2, cache_ids=94), audit="prod", started_at=STARTED_AT + 86_400_000_000)
    return root


def answers(script: str, tmp_path: Path) -> list:
    """Run a script in a process where only DuckDB can be imported, and return every view's rows."""
    only_duckdb = {"PYTHONPATH": str(Path(duckdb.__file__).parents[1]), "TZ": "Asia/Tokyo", "HOME": str(tmp_path)}
    command = [sys.executable, "-S", "-P", "-c", EVERY_VIEW]
    done = subprocess.run(
        command, cwd=tmp_path, env=only_duckdb, input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("where", ["published", "empty"])
def test_the_views_answer_as_in_the_projects_session(root, tmp_path, where):
    root = root if where == "published" else tmp_path / "none"
    found, (zone, disabled) = answers(query.script(warehouse.tables(root)), tmp_path)
    own = session(root)
    assert {"host_waste", "targets", "stored_memcgs"} <= set(found)
    assert (len(found["host_waste"]) > 0) == (where == "published")
    for name, rows in found.items():
        expected = own.rows(f"SELECT CAST(t AS VARCHAR) AS row FROM {name} AS t ORDER BY ALL")
        assert rows == [row["row"] for row in expected], name
    known = own.rows("SELECT name FROM duckdb_optimizers() WHERE name = 'partitioned_execution'")
    assert (zone, disabled) == ("UTC", "partitioned_execution" if known else "")


def test_a_script_may_be_split_at_every_semicolon(tmp_path):
    """As harlequin does, which then fetches what each part returns."""
    publish(tmp_path, ok("a"))
    connection = duckdb.connect()
    for part in filter(str.strip, query.script(warehouse.tables(tmp_path)).split(";")):
        connection.execute(part).fetchall()
    assert connection.execute("SELECT target FROM host_waste").fetchall() == [("a",)]


def test_the_command_line_of_duckdb_takes_it(root, tmp_path):
    beside = Path(sys.executable).with_name("duckdb")
    program = str(beside) if beside.exists() else shutil.which("duckdb")
    if program is None:
        pytest.skip("no duckdb command line: pip install duckdb-cli")
    (tmp_path / "audit.sql").write_text(query.script(warehouse.tables(root)))
    asked = "SELECT target, wasted_bytes FROM host_waste ORDER BY ALL"
    command = [program, "-init", "audit.sql", "-json", "-c", asked]
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == session(root).rows(asked)
