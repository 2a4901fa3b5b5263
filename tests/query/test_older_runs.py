"""Runs that earlier versions wrote are read as they are, alone and beside a new one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from pipeline import warehouse
from pipeline.query import views
from pipeline.warehouse import schema
from tests.query.test_vmcores import OF_SEVERAL_RUNS, SERVER_BYTES, VIEWS
from tests.warehouse.outcomes import session

WAREHOUSES = Path(__file__).parents[1] / "warehouse"
VERSIONS = sorted(WAREHOUSES.glob("v[0-9]*"))
MACROS = [name for name in views.statements() if name.endswith("_waste_at")]


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def older(request):
    return request.param


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def confined(request):
    return request.param == "arrow"


@pytest.fixture(scope="module")
def alone(older, confined):
    return session(older, confined=confined)


@pytest.fixture(scope="module")
def together(older, confined, bundled, tmp_path_factory):
    """The older run of audit `bundled`, and a new one."""
    root = tmp_path_factory.mktemp("together")
    shutil.copytree(older / "runs", root / "runs")
    shutil.copytree(bundled / "runs", root / "runs", dirs_exist_ok=True)
    return session(root, confined=confined)


def test_a_run_of_every_earlier_version_is_kept():
    assert [path.name for path in VERSIONS] == [f"v{version}" for version in range(1, schema.VERSION)]


def test_it_is_as_that_version_wrote_it(older):
    (run,) = warehouse.runs(older)
    assert run.versions["schema"] == int(older.name.removeprefix("v"))
    for file in run.files:
        assert hashlib.sha256((older / "runs" / run.run_id / file.path).read_bytes()).hexdigest() == file.sha256


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_reads_it(alone, together, view):
    assert len(alone.sql(f"FROM {view}")) > 0 or view in OF_SEVERAL_RUNS
    assert len(together.sql(f"FROM {view}")) > 0 or view == "upgrades"
    assert alone.sql(f"FROM {view}").schema.equals(together.sql(f"FROM {view}").schema)


def test_the_server_holds_what_it_held(older, alone):
    first = alone.rows("FROM host_waste")[0]
    assert (first["target"], first["list_lru_bytes"]) == ("bytedance/vmcore", SERVER_BYTES)
    # Version 1 did not look for charged objects.
    basis, lazy = ("online", "lazy_high_bytes") if older.name == "v1" else ("charged", "lazy_bytes")
    assert first["lazy_basis"] == basis
    assert first["wasted_bytes"] == SERVER_BYTES - first[lazy] > 0.9 * SERVER_BYTES


def test_breakdowns_add_up(alone):
    (total,) = alone.rows("SELECT sum(wasted_bytes)::BIGINT AS wasted FROM host_waste")
    for macro in MACROS:
        view = macro.removesuffix("_at")
        where = "WHERE label = (SELECT min(label) FROM label_waste)" if view == "label_waste" else ""
        assert alone.rows(f"SELECT sum(wasted_bytes)::BIGINT AS wasted FROM {view} {where}") == [total], view


def test_a_run_says_the_same_beside_a_newer_one(older, alone, together):
    (run,) = warehouse.runs(older)
    for macro in MACROS:
        query = f"FROM {macro}('{run.run_id}') ORDER BY ALL"
        assert together.rows(query) == alone.rows(query), macro


def test_the_newest_run_is_compared_with_it(older, together):
    pairs = {row["target"]: row for row in together.rows("FROM growth")}
    assert len(pairs) == 8
    server = pairs["bytedance/vmcore"]
    assert (server["from_list_lru_bytes"], server["to_list_lru_bytes"]) == (SERVER_BYTES, SERVER_BYTES)
    compared = (False, None) if older.name == "v1" else (True, 0)
    assert (server["comparable"], server["wasted_bytes_delta"]) == compared
    assert server["rebooted"] is (older.name == "v1")  # from another core than today's
    history = together.rows("SELECT run_id, hosts, list_lru_bytes FROM fleet_history")
    assert [row["hosts"] for row in history] == [8, 9]
    assert all(SERVER_BYTES < row["list_lru_bytes"] < 1.01 * SERVER_BYTES for row in history)
    missing = {row["target"]: row["status"] for row in together.rows("FROM missing")}
    assert missing == {"cut-short": None, "readme": "bad_core"}
