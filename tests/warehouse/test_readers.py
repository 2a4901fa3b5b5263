"""Other programs read the same values from a run's Parquet files as DuckDB does, addresses and labels included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.warehouse import schema
from tests.warehouse.outcomes import ok, publish

pytestmark = pytest.mark.faults

Columns = dict[str, list[Any]]


def read_with_polars(path: str) -> Columns:
    polars = pytest.importorskip("polars", reason="needs polars")
    return polars.read_parquet(path).to_arrow().to_pydict()


def read_with_datafusion(path: str) -> Columns:
    datafusion = pytest.importorskip("datafusion", reason="needs datafusion")
    return pa.Table.from_batches(datafusion.SessionContext().read_parquet(path).collect()).to_pydict()


def read_with_pandas(path: str) -> Columns:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.read_parquet(path, engine="pyarrow", dtype_backend="pyarrow")
    return pa.Table.from_pandas(frame, preserve_index=False).to_pydict()


def comparable(values: list[Any]) -> list[str]:
    """Values as text: a map is a list of pairs, of dicts with key and value, or a dict."""

    def plain(value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return [[item["key"], item["value"]] for item in value]
        if isinstance(value, dict):
            return [list(item) for item in value.items()]
        return value

    return [json.dumps(plain(value), default=str) for value in values]


@pytest.mark.parametrize("read", [read_with_polars, read_with_datafusion, read_with_pandas])
def test_every_value_is_the_same(tmp_path: Path, read: Callable[[str], Columns]) -> None:
    outcomes = [ok(f"web-{n}", mounts=60, cache_ids=94) for n in range(3)]
    for outcome in outcomes:
        outcome["row"]["labels"] = {"rack": "r1", "größe": "groß"}
    directory = publish(tmp_path, *outcomes)
    for table in schema.tables():
        (file,) = directory.glob(f"{table}-*.parquet")
        expected = duckdb.sql(f"FROM '{file}'").to_arrow_table().to_pydict()
        columns = read(str(file))
        assert list(columns) == list(expected)
        for name, values in expected.items():
            assert comparable(columns[name]) == comparable(values), (table, name)
        if "address" in expected:
            assert min(expected["address"]) > 2**63
