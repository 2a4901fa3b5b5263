"""Generated fleets are warehouses that the collector could have made, and the newest ranking reads no list_lrus."""

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
from tests.bench.warehouse import EVERY, NEWEST, WHOLE, publish

COUNTED = ("list_lru_one_objects", "list_lru_one_size", "list_lru_one_bytes", "pointer_array_bytes", "node_array_bytes")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fleet")
    write(folder, Fleet(hosts=60, lists=300, runs=2))
    return folder


@pytest.mark.parametrize("name", ["deb510-n2", "deb510-arm64", "deb510-n4"])
def test_a_state_of_a_cores_own_size_costs_what_the_kernel_has(name: str) -> None:
    attempt = states.core(name)
    columns = attempt["columns"]
    shape = states.Shape(name, columns["memcg_nr_cache_ids"], columns["superblocks"], columns["online_memcgs"])
    made = states.state(shape, 1).tables["list_lrus"].to_pylist()
    real = states.rows(attempt, "list_lrus")
    assert [[row[key] for key in COUNTED] for row in made] == [[row[key] for key in COUNTED] for row in real]


def test_generated_runs_pass_every_check(root: Path) -> None:
    manifests = warehouse.runs(root)
    assert len(manifests) == 2
    for manifest in manifests:
        assert query.check(datasets([manifest])) == []


def test_checks_that_need_more_memory_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = warehouse.runs(root)[-1]
    given = []

    class Noted(query.Session):
        def __init__(self, *args: Any, memory_bytes: int | None = None) -> None:
            given.append(memory_bytes)
            super().__init__(*args, memory_bytes=memory_bytes)

    monkeypatch.setattr(checks, "Session", Noted)
    monkeypatch.setattr(checks, "_MEMORY_BYTES", 2 << 20)
    assert query.check(datasets([manifest])) == []
    assert given == [2 << 20, None]


def test_the_sums_kept_by_publishing_are_those_of_the_rows(tmp_path: Path) -> None:
    write(tmp_path, Fleet(hosts=12, lists=200, runs=1))
    run_id = publish(str(tmp_path))["run_id"]
    session = query.Session(warehouse.tables(tmp_path))
    summed = "sum(list_lru_bytes)::BIGINT AS held, sum(lazy_bytes)::BIGINT AS lazy"
    kept = session.rows(f"SELECT {summed} FROM targets WHERE run_id = '{run_id}'")
    assert kept == session.rows(f"SELECT {summed} FROM list_lrus WHERE run_id = '{run_id}'")
    assert kept[0]["held"] > 0


def test_a_list_lru_takes_few_bytes(root: Path) -> None:
    files = [file for manifest in warehouse.runs(root) for file in manifest.files if file.table == "list_lrus"]
    assert sum(file.bytes for file in files) < 8 * sum(file.rows for file in files)


def scanned(operator: dict[str, Any]) -> Iterator[int]:
    """Yield how many rows of list_lrus each scan in a plan read."""
    if "list_lrus-" in operator["extra_info"].get("Filename(s)", ""):
        yield operator["rows_scanned"]
    for child in operator.get("children", ()):
        yield from scanned(child)


def test_the_newest_ranking_reads_the_kept_sums_and_no_list_lrus(root: Path) -> None:
    """A scan notices with its first vector of rows that no target wants them; each run's file is one row group."""
    stored = sum(file.rows for manifest in warehouse.runs(root) for file in manifest.files if file.table == "list_lrus")
    session = query.Session(warehouse.tables(root))
    read = {}
    for statement in (NEWEST, EVERY, WHOLE):
        plan = session.rows(f"EXPLAIN (ANALYZE, FORMAT json) {statement}")[0]["explain_value"]
        read[statement] = sum(scanned(json.loads(plan)["operator"][0]))
    assert read[WHOLE] == stored > 10 * 2048
    assert max(read[NEWEST], read[EVERY]) <= 2 * 2048
