"""Collect the SQL tests: each YAML file is a case with given rows and the rows expected of a query.

    views/<view>/<case>.yaml     given: {table: [rows]}, query, expect: [rows in the query's order]
    checks/<check>/<case>.yaml   given, expect: the offending rows in order of target and reason
    reports/<report>/<case>.yaml given, params beside run, which is r1, expect: the rows in the report's order

Given rows name only the columns that matter; the others are null. Every case runs on both bindings of a session,
Parquet and Arrow. Expected numbers are worked out by hand; the case says how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import query
from pipeline.common import data
from pipeline.query import views
from pipeline.warehouse import schema


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".yaml":
        return CaseFile.from_parent(parent, path=file_path)
    return None


class CaseFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        for binding in ("parquet", "arrow"):
            yield Case.from_parent(self, name=binding, is_confined=binding == "arrow")


class Case(pytest.Item):
    def __init__(self, *, is_confined: bool, **options: Any) -> None:
        super().__init__(**options)
        self.is_confined = is_confined

    def runtest(self) -> None:
        case = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        assert set(case) <= {"given", "query", "params", "expect"}
        directory = self.config._tmp_path_factory.mktemp("given")
        with mock.patch.object(views, "statements", return_value=needed_statements(self.query(case))):
            session = query.Session(write_datasets(directory, case["given"]), is_confined=self.is_confined)
        is_report = self.path.parent.parent.name == "reports"
        params = {"run": "r1", **case.get("params", {})} if is_report else None
        rows = session.rows(self.query(case), params)
        assert rows == case["expect"]

    def query(self, case: dict[str, Any]) -> str:
        if "query" in case:
            return case["query"]
        folder = self.path.parent.parent.name
        statement = (data.path("sql") / folder / f"{self.path.parent.name}.sql").read_text(encoding="utf-8")
        if folder == "reports":
            return statement
        return f"FROM ({statement.rstrip().removesuffix(';')}\n) ORDER BY ALL NULLS LAST"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return f"{self.path.relative_to(Path(__file__).parent)} [{self.name}]\n{excinfo.value}"

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.parent.name}/{self.path.stem} [{self.name}]"


def needed_statements(text: str) -> dict[str, str]:
    """Return the macros and views that a query needs: creating all would take most of the time of a case."""
    statements = views.statements()
    names: set[str] = set()
    texts = [text, "_newest_run"]  # which a session itself asks
    while texts:
        new_names = statements.keys() & set(re.findall(r"\w+", texts.pop())) - names
        names |= new_names
        texts += [statements[name] for name in new_names]
    return {name: statement for name, statement in statements.items() if name in names}


def write_datasets(directory: Path, rows: dict[str, list[dict[str, Any]]]) -> dict[str, ds.UnionDataset]:
    datasets = {}
    for name, table in schema.tables().items():
        for row in rows.get(name, ()):
            assert set(row) <= set(table.arrow.names), f"{name}: {sorted(set(row) - set(table.arrow.names))}"
        paths = []
        if name in rows:
            nullable = pa.schema([field.with_nullable(True) for field in table.arrow])
            paths = [str(directory / f"{name}.parquet")]
            pq.write_table(pa.Table.from_pylist(rows[name], schema=nullable), paths[0])
        files = ds.FileSystemDataset.from_paths(
            paths, schema=table.arrow, format=ds.ParquetFileFormat(), filesystem=pa.fs.LocalFileSystem()
        )
        datasets[name] = ds.UnionDataset(table.arrow, [files])
    return datasets
