"""The script of `--print-init` makes a DuckDB without this project return the same rows."""

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
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

PRINT_VIEWS = """
import json, sys
import duckdb
try:
    import pipeline
    sys.exit("the project is importable")
except ImportError:
    pass
connection = duckdb.connect()
script = sys.stdin.read()
for _ in range(2):  # the second execution replaces the views of the first
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
    publish(root, ok("a"), ok("né\x1b|'c", mounts=3), failure("b"), audit="prod", started_at=STARTED_AT)
    publish(root, ok("a", mounts=4, nodes=2, cache_ids=94), audit="prod", started_at=STARTED_AT + 86_400_000_000)
    return root


def view_rows(script: str, tmp_path: Path) -> list:
    """Run a script in a process that can import only DuckDB; return the rows of every view, and settings."""
    environment = {"PYTHONPATH": str(Path(duckdb.__file__).parents[1]), "TZ": "Asia/Tokyo", "HOME": str(tmp_path)}
    command = [sys.executable, "-S", "-P", "-c", PRINT_VIEWS]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, input=script, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("contents", ["published", "empty"])
def test_the_views_answer_as_in_the_projects_session(root, tmp_path, contents):
    root = root if contents == "published" else tmp_path / "none"
    rows_by_view, (zone, disabled_optimizers) = view_rows(query.init_script(warehouse.tables(root)), tmp_path)
    direct_session = session(root)
    assert {"host_waste", "targets", "_stored_memcgs"} <= set(rows_by_view)
    assert (len(rows_by_view["host_waste"]) > 0) == (contents == "published")
    for name, rows in rows_by_view.items():
        expected_rows = direct_session.rows(f"SELECT CAST(t AS VARCHAR) AS row FROM {name} AS t ORDER BY ALL")
        assert rows == [row["row"] for row in expected_rows], name
    optimizers = direct_session.rows("SELECT name FROM duckdb_optimizers() WHERE name = 'partitioned_execution'")
    assert (zone, disabled_optimizers) == ("UTC", "partitioned_execution" if optimizers else "")


def test_a_script_may_be_split_at_every_semicolon(tmp_path):
    """harlequin splits a script so and fetches the result of each part."""
    publish(tmp_path, ok("a"))
    connection = duckdb.connect()
    for part in filter(str.strip, query.init_script(warehouse.tables(tmp_path)).split(";")):
        connection.execute(part).fetchall()
    assert connection.execute("SELECT target FROM host_waste").fetchall() == [("a",)]


def test_the_command_line_of_duckdb_takes_it(root, tmp_path):
    installed_command = Path(sys.executable).with_name("duckdb")
    program = str(installed_command) if installed_command.exists() else shutil.which("duckdb")
    if program is None:
        pytest.skip("needs duckdb-cli")
    (tmp_path / "audit.sql").write_text(query.init_script(warehouse.tables(root)))
    statement = "SELECT target, wasted_bytes FROM host_waste ORDER BY ALL"
    command = [program, "-init", "audit.sql", "-json", "-c", statement]
    env = {**os.environ, "HOME": str(tmp_path)}
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == session(root).rows(statement)
