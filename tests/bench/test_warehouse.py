"""A generated warehouse is consistent with the collector's model, and its newest ranking reads no list_lrus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import query, warehouse
from pipeline.query import checks
from pipeline.warehouse.runs import datasets
from tests.bench import states
from tests.bench.fleet import Fleet, write
from tests.bench.warehouse import ALL_RUNS_RANKING, NEWEST_RANKING, RANKING_FROM_ROWS, list_lru_files, publish

pytestmark = pytest.mark.faults

COLUMNS = ("list_lru_one_objects", "list_lru_one_size", "list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A warehouse of two runs of 60 hosts."""
    folder: Path = tmp_path_factory.mktemp("fleet")
    write(folder, Fleet(hosts=60, lists=300, runs=2))
    return folder


@pytest.mark.parametrize("name", ["deb510-n2", "deb510-arm64", "deb510-n4"])
def test_a_state_of_a_cores_own_size_costs_what_the_kernel_has(name: str) -> None:
    attempt = states.core(name)
    columns = attempt["columns"]
    shape = states.Shape(name, columns["memcg_nr_cache_ids"], columns["superblocks"], columns["online_memcgs"])
    generated_rows = states.state(shape, 1).tables["list_lrus"].to_pylist()
    core_rows = states.rows(attempt, "list_lrus")
    for generated_row, core_row in zip(generated_rows, core_rows, strict=True):
        assert [generated_row[key] for key in COLUMNS] == [core_row[key] for key in COLUMNS]


def test_generated_runs_pass_every_check(root: Path) -> None:
    manifests = warehouse.published_runs(root)
    assert len(manifests) == 2
    for manifest in manifests:
        assert query.check(datasets([manifest])) == []


def test_checks_that_need_more_memory_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = warehouse.published_runs(root)[-1]
    memory_limits = []

    class RecordingSession(query.Session):
        def __init__(self, *args: Any, memory_bytes: int | None = None) -> None:
            memory_limits.append(memory_bytes)
            super().__init__(*args, memory_bytes=memory_bytes)

    monkeypatch.setattr(checks, "Session", RecordingSession)
    monkeypatch.setattr(checks, "_MEMORY_BYTES", 2 << 20)
    assert query.check(datasets([manifest])) == []
    assert memory_limits == [2 << 20, None]


def test_the_sums_kept_by_publishing_are_those_of_the_rows(tmp_path: Path) -> None:
    write(tmp_path, Fleet(hosts=12, lists=200, runs=1))
    run_id = publish(str(tmp_path))["run_id"]
    session = query.Session(warehouse.tables(tmp_path))
    sums = "sum(list_lru_bytes)::BIGINT AS eager, sum(lazy_bytes)::BIGINT AS lazy"
    stored_sums = session.rows(f"SELECT {sums} FROM targets WHERE run_id = '{run_id}'")
    assert stored_sums == session.rows(f"SELECT {sums} FROM list_lrus WHERE run_id = '{run_id}'")
    assert stored_sums[0]["eager"] > 0


def test_a_list_lru_takes_few_bytes(root: Path) -> None:
    files = list_lru_files(warehouse.published_runs(root))
    assert sum(file.bytes for file in files) < 8 * sum(file.rows for file in files)


def rows_scanned(operator: dict[str, Any]) -> Iterator[int]:
    """Yield the number of rows that each scan of list_lrus in a query plan has read."""
    if "list_lrus-" in operator["extra_info"].get("Filename(s)", ""):
        yield operator["rows_scanned"]
    for child in operator.get("children", ()):
        yield from rows_scanned(child)


def test_the_newest_ranking_reads_the_kept_sums_and_no_list_lrus(root: Path) -> None:
    """A scan whose rows no target needs stops after the first vector of rows; each run's file is one row group."""
    stored_rows = sum(file.rows for file in list_lru_files(warehouse.published_runs(root)))
    session = query.Session(warehouse.tables(root))
    read_rows = {}
    for statement in (NEWEST_RANKING, ALL_RUNS_RANKING, RANKING_FROM_ROWS):
        plan = session.rows(f"EXPLAIN (ANALYZE, FORMAT json) {statement}")[0]["explain_value"]
        read_rows[statement] = sum(rows_scanned(json.loads(plan)["operator"][0]))
    assert read_rows[RANKING_FROM_ROWS] == stored_rows > 10 * 2048
    assert max(read_rows[NEWEST_RANKING], read_rows[ALL_RUNS_RANKING]) <= 2 * 2048
