"""Tables that the fan-out passes on as JSON text, which Arrow parses, are stored and refused as Python reads them.

Python's way is that of the same outcomes with rows instead of text, which `test_hostile.py` tests value by value.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import query, warehouse
from pipeline.fanout.workers import _with_json_tables
from pipeline.warehouse import staging as staging_module
from pipeline.warehouse.outcome import HOST_TABLES
from tests.warehouse.outcomes import directory_of, failure, ok, publish, run, session, set_cell
from tests.warehouse.test_hostile import MISFITS


def add_column(outcome: dict[str, Any], table: str, name: str, cells: list[Any]) -> dict[str, Any]:
    outcome["tables"][table]["columns"].append(name)
    for row, cell in zip(outcome["tables"][table]["rows"], cells, strict=True):
        row.append(cell)
    return outcome


def without_rows(target: str) -> dict[str, Any]:
    outcome = ok(target)
    outcome["tables"] = {}
    return outcome


def without_columns(target: str) -> dict[str, Any]:
    """Return the outcome of a kernel without list_lrus, whose frame has no line for a table."""
    outcome = ok(target)
    outcome["tables"] = {name: {"columns": [], "rows": []} for name in HOST_TABLES}
    return outcome


# The columns of these hosts differ, as those of different kernels do.
FITTING = [
    ok("plain"),
    failure("failed"),
    set_cell(ok("last address"), "superblocks", "address", 2**64 - 1),
    set_cell(ok("addresses differ in the last bit"), "superblocks", "address", 2**53 + 1),
    set_cell(ok("names"), "superblocks", "s_id", 'né 日本 \U0001f600 \x00 " \\ \t\n'),
    set_cell(ok("long name"), "superblocks", "s_id", "x" * 65_536),
    add_column(ok("bytes"), "superblocks", "s_id_raw", ["ff00", None]),
    add_column(ok("mounts"), "superblocks", "mounts", [0, 2**52]),
    add_column(ok("internal"), "superblocks", "kernel_internal", [True, None]),
    set_cell(ok("dead id"), "memcgs", "cache_id", -1),
    without_rows("no rows"),
    without_columns("no columns"),
    failure("unsupported", "unsupported"),
]


def with_text(outcome: dict[str, Any]) -> dict[str, Any]:
    return _with_json_tables(copy.deepcopy(outcome))


def rows_of(directory: Path) -> dict[str, pa.Table]:
    names = ("targets", "attempts", *HOST_TABLES)
    return {name: pq.read_table(directory / f"{name}-00000.parquet").drop_columns("run_id") for name in names}


@pytest.mark.parametrize("outcomes", [FITTING, *([outcome] for outcome in FITTING)], ids=lambda o: o[-1]["target"])
def test_what_fits_is_stored_as_from_rows(tmp_path, outcomes):
    from_rows = rows_of(publish(tmp_path / "rows", *copy.deepcopy(outcomes)))
    from_text = rows_of(publish(tmp_path / "text", *map(with_text, outcomes)))
    assert from_text == from_rows
    assert from_text["targets"]["status"].to_pylist().count("bad_output") == 0


SPOOLED_MISFITS = [name for name in MISFITS if "must have distinct columns" not in MISFITS[name][1]]


@pytest.fixture(scope="module")
def misfits(tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    outcomes = [ok("honest"), *({**MISFITS[name][0], "target": name} for name in SPOOLED_MISFITS), ok("too")]
    publish(root, *map(with_text, outcomes), check=query.check)
    return session(root)


@pytest.mark.parametrize("name", SPOOLED_MISFITS)
def test_what_does_not_fit_is_bad_output_with_the_same_reason(misfits, name):
    (row,) = misfits.rows("FROM targets WHERE target = $name", {"name": name})
    assert (row["status"], row["error_type"]) == ("bad_output", "schema")
    assert MISFITS[name][1] in row["error"]


def test_what_does_not_fit_stops_nobody_else(misfits):
    for table in HOST_TABLES:
        rows = misfits.rows(f"SELECT target, count(*) AS n FROM {table} GROUP BY ALL ORDER BY ALL")
        assert [row["target"] for row in rows] == ["honest", "too"]
        assert rows[0]["n"] == rows[1]["n"] > 0


def test_batches_change_nothing(tmp_path, monkeypatch):
    outcomes = [with_text(ok(f"host-{number}", mounts=number)) for number in range(1, 20)]
    together = rows_of(publish(tmp_path / "together", *outcomes))
    monkeypatch.setattr(staging_module, "_BATCH_BYTES", 1)
    assert rows_of(publish(tmp_path / "alone", *outcomes)) == together


def test_rows_are_sorted_by_target_and_address(tmp_path):
    outcomes = [with_text(ok(target, mounts=30)) for target in ("b", "c", "a")]
    for name, table in rows_of(publish(tmp_path, *outcomes)).items():
        keys = [name for name in ("target", "address") if name in table.column_names]
        assert table.select(keys) == table.select(keys).sort_by([(key, "ascending") for key in keys]), name


def test_a_run_that_version_0_1_0_staged_is_published(tmp_path):
    """Its spool has the rows as JSON text in the entry, and no tab."""
    staging = warehouse.Staging.create(tmp_path, run(targets=2))
    staging.append(ok("new"))
    spool = staging.directory / "outcomes.jsonl"
    line = spool.read_bytes()
    assert line.count(b"\t") == 1
    old = json_rows_as_text(line.partition(b"\t")[0].replace(b'"new"', b'"old"', 1))
    with spool.open("ab") as file:
        file.write(old + b"\n")
    directory = directory_of(staging.publish(query.check))
    lists = pq.read_table(directory / "list_lrus-00000.parquet")
    assert lists["target"].to_pylist() == ["new"] * 5 + ["old"] * 5


def json_rows_as_text(entry: bytes) -> bytes:
    target, content = json.loads(entry)
    content["host"]["tables"] = json.dumps(content["host"]["tables"])
    return json.dumps([target, content]).encode()
