"""Runs that earlier versions wrote are read as they are, alone and beside a new run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import warehouse
from pipeline.query import views
from pipeline.warehouse import schema
from tests.query.conftest import publish_cores
from tests.query.test_vmcores import EMPTY_VIEWS, SERVER_BYTES, VIEWS
from tests.warehouse.outcomes import session

WAREHOUSES = Path(__file__).parents[1] / "warehouse"
VERSIONS = sorted(WAREHOUSES.glob("v[0-9]*"))
# Views of tables that these versions do not have.
NEW_VIEWS = (
    "memcg_memory", "latest_memcg_memory", "_upgrade_nets", "upgrade_net", "dying_memcg_pages",
    "latest_dying_memcg_pages", "dying_causes",
)  # fmt: skip
MACROS = [name for name in views.statements() if name.endswith("_waste_at")]


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def older_root(request):
    return request.param


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def is_confined(request):
    return request.param == "arrow"


@pytest.fixture(scope="module")
def older_db(older_root, is_confined):
    return session(older_root, is_confined=is_confined)


@pytest.fixture(scope="module")
def both_db(older_root, is_confined, attempts, tmp_path_factory):
    """The older run of audit `bundled` and a new one."""
    root = tmp_path_factory.mktemp("together")
    shutil.copytree(older_root / "runs", root / "runs")
    publish_cores(root, attempts)
    return session(root, is_confined=is_confined)


def test_a_run_of_every_earlier_version_is_kept():
    assert [path.name for path in VERSIONS] == [f"v{version}" for version in range(1, schema.VERSION)]


def test_it_is_as_that_version_wrote_it(older_root):
    (run,) = warehouse.published_runs(older_root)
    assert run.versions["schema"] == int(older_root.name.removeprefix("v"))
    for file in run.files:
        assert hashlib.sha256((older_root / "runs" / run.run_id / file.path).read_bytes()).hexdigest() == file.sha256


def test_its_row_in_runs_is_that_of_its_file(older_root, both_db):
    (file,) = older_root.glob("runs/*/runs-*.parquet")
    (row,) = pq.read_table(file).to_pylist()
    row = dict.fromkeys(schema.tables()["runs"].arrow.names) | row  # columns of later versions are null
    assert row in both_db.rows("FROM runs")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_reads_it(older_db, both_db, view):
    assert len(older_db.sql(f"FROM {view}")) > 0 or view in (*EMPTY_VIEWS, *NEW_VIEWS)
    assert len(both_db.sql(f"FROM {view}")) > 0 or view in ("core_copies", "upgrades")
    assert older_db.sql(f"FROM {view}").schema.equals(both_db.sql(f"FROM {view}").schema)


def test_the_server_holds_what_it_held(older_root, older_db):
    worst_host = older_db.rows("FROM host_waste")[0]
    assert (worst_host["target"], worst_host["list_lru_bytes"]) == ("bytedance/vmcore", SERVER_BYTES)
    # Version 1 did not scan for charged objects.
    basis, lazy_column = ("online", "lazy_high_bytes") if older_root.name == "v1" else ("charged", "lazy_bytes")
    assert worst_host["lazy_basis"] == basis
    assert worst_host["wasted_bytes"] == SERVER_BYTES - worst_host[lazy_column] > 0.9 * SERVER_BYTES


def test_breakdowns_add_up(older_db):
    (total,) = older_db.rows("SELECT sum(wasted_bytes)::BIGINT AS wasted FROM host_waste")
    for macro in MACROS:
        view = macro.removesuffix("_at")
        condition = "WHERE label = (SELECT min(label) FROM label_waste)" if view == "label_waste" else ""
        assert older_db.rows(f"SELECT sum(wasted_bytes)::BIGINT AS wasted FROM {view} {condition}") == [total], view


def test_a_run_says_the_same_beside_a_newer_one(older_root, older_db, both_db):
    (run,) = warehouse.published_runs(older_root)
    for macro in MACROS:
        query = f"FROM {macro}('{run.run_id}') ORDER BY ALL"
        assert both_db.rows(query) == older_db.rows(query), macro


def test_the_newest_run_is_compared_with_it(older_root, both_db):
    pairs = {row["target"]: row for row in both_db.rows("FROM growth")}
    assert len(pairs) == 8
    server = pairs["bytedance/vmcore"]
    assert (server["from_list_lru_bytes"], server["to_list_lru_bytes"]) == (SERVER_BYTES, SERVER_BYTES)
    has_same_model = older_root.name in ("v5", "v6")
    assert (server["comparable"], server["wasted_bytes_delta"]) == ((True, 0) if has_same_model else (False, None))
    assert server["rebooted"]  # the older versions read other cores of the server
    history = both_db.rows("SELECT run_id, hosts, list_lru_bytes FROM fleet_history")
    assert [row["hosts"] for row in history] == [8, 10]
    assert all(SERVER_BYTES < row["list_lru_bytes"] < 1.01 * SERVER_BYTES for row in history)
    missing = {row["target"]: row["status"] for row in both_db.rows("FROM missing")}
    assert missing == {"cut-short": None, "readme": "bad_core"}
