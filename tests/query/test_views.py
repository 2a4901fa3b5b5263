"""Every view, macro and column has one description, shown in DuckDB and in docs/tables.md."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from docs import tables as dictionary
from pipeline import warehouse
from pipeline.query import views
from tests.warehouse.outcomes import ok, publish, session


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    publish(root, ok("a"))
    return root


@pytest.fixture(scope="module")
def confined_session(root):
    return session(root, is_confined=True)


def test_the_data_dictionary_is_not_stale():
    assert dictionary.FILE.read_text("utf-8") == dictionary.markdown(), "run: python -m docs.tables"


def test_every_view_and_every_column_of_one_has_a_comment_in_duckdb(confined_session):
    rows = confined_session.rows("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal")
    comments = {row["view_name"]: row["comment"] for row in rows if not row["view_name"].startswith("_stored_")}
    assert {"targets", "host_waste", "growth", "upgrades"} <= comments.keys()
    assert [name for name, comment in comments.items() if not comment or "?" not in comment] == []
    columns = confined_session.rows("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal")
    columns = [row for row in columns if row["table_name"] in comments]
    assert len(columns) > 300
    assert [row for row in columns if not row["comment"]] == []


def test_every_macro_has_a_comment_in_duckdb(confined_session):
    rows = confined_session.rows("SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal")
    comments = {row["function_name"]: row["comment"] for row in rows}
    assert {"host_waste_at", "upgrade_plan", "_pointer_array_alloc_bytes"} <= comments.keys()
    assert [name for name, comment in comments.items() if not comment or "?" not in comment] == []


@pytest.mark.parametrize(
    ("view", "column", "comment"),
    [
        ("targets", "duration_ms", "Wall time from the first attempt to the final outcome [ms]"),
        ("latest_attempts", "duration_ms", "Wall time of the attempt [ms]"),
        ("superblock_waste", "owner", "Owning cgroup or user namespace, where known"),
        ("upgrades", "from_uptime_s", "uptime_s of the earlier snapshot [s]"),
    ],
)
def test_a_comment_is_the_meaning_and_the_unit(confined_session, view, column, comment):
    statement = "SELECT comment FROM duckdb_columns() WHERE table_name = $view AND column_name = $column"
    assert confined_session.rows(statement, {"view": view, "column": column}) == [{"comment": comment}]


def test_the_parquet_files_say_what_their_columns_mean(root):
    schema = pq.read_schema(warehouse.tables(root)["targets"].children[0].files[0])
    assert schema.metadata[b"meaning"] == b"One row for every target of a run"
    assert schema.field("duration_ms").metadata[b"unit"] == b"ms"
    assert schema.field("memory_bytes").metadata[b"source"] == b"_totalram_pages"
    assert all(field.metadata[b"meaning"] for field in schema)


def test_a_name_that_only_views_have_is_in_some_view(confined_session):
    names = {row["column_name"] for row in confined_session.rows("SELECT column_name FROM duckdb_columns()")}
    names |= set(confined_session.sql("FROM upgrade_plan(1)").column_names)
    assert set(views.view_columns()) <= names


def test_units_agree_with_names():
    units = {"_bytes": "bytes", "_s": "s", "_at": "UTC", "_bytes_delta": "bytes", "hosts": "targets"}
    for name, column in views.view_columns().items():
        for suffix, unit in units.items():
            if name.endswith(suffix):
                assert column.unit == unit, name
        if "pct" in name:
            assert column.unit == "%", name
