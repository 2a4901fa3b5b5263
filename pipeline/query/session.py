"""One DuckDB session: its settings and their order, the tables bound, the macros and views of `sql/` made.

Two bindings. The project's own SQL reads Parquet directly, but from an object store over registered Arrow datasets. SQL
that a user typed is confined: it runs without any file access over registered Arrow datasets, under locked settings, in
a transaction that cannot write.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.query import views

# Drops a filter on a hive column and returns wrong sums in 2.0.0; 1.5 has no such optimizer.
_WRONG_OPTIMIZER = "partitioned_execution"
# Hands a scan the keys of a join; 1.5 fails to hand an Arrow scan those above 2^63 - 1, and so are kernel addresses.
_FAILING_OPTIMIZER = "join_filter_pushdown"

_CONFINEMENT = (
    "SET python_enable_replacements = false",
    "SET autoload_known_extensions = false",
    "SET autoinstall_known_extensions = false",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class QueryError(Exception):
    """A query cannot be answered; the message is one line."""

    exit_code = 1


class Session:
    """A session over the tables of a warehouse.

    :param tables: the dataset of each table, as `warehouse.tables` gives them; one without files is an empty table.
    :param confined: for SQL that a user typed: one reading statement at a time and nothing but these tables.
    :param memory_mib: what DuckDB may use before it spills; default half of the machine's.
    """

    def __init__(
        self,
        tables: Mapping[str, ds.FileSystemDataset],
        *,
        confined: bool = False,
        memory_mib: int | None = None,
    ) -> None:
        self._confined = confined
        registered = confined or any(dataset.filesystem.type_name != "local" for dataset in tables.values())
        self._connection = duckdb.connect(":memory:")
        # What does not fit into memory goes to a directory of this session, not to `.tmp` where the user stands.
        self._spill = tempfile.mkdtemp(prefix="lru-audit-")
        weakref.finalize(self, shutil.rmtree, self._spill, ignore_errors=True)
        with _one_line_errors():
            self._configure(memory_mib or _half_of_memory_mib(), registered)
            for name, dataset in tables.items():
                if registered:
                    self._connection.register(f"stored_{name}", dataset)
                else:
                    self._declare(name, dataset)
            for statement in views.statements().values():
                self._connection.execute(statement)
            if confined:
                self._comment({name: dataset.schema for name, dataset in tables.items()})
            if not registered:
                # Not sooner: each view made above would open every file to bind its columns.
                for name, dataset in tables.items():
                    self._bind(name, dataset)
            for setting in _CONFINEMENT if confined else ():
                self._connection.execute(setting)

    def sql(self, query: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one query and return its result; HUGEINT comes as decimal128(38, 0).

        :param params: values of the `$name` parameters in the query.
        """
        with _one_line_errors():
            if self._confined:
                return self._read_only(query, params)
            return self._connection.sql(query, params=params).to_arrow_table()

    def rows(self, query: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Run one query and return its rows as dicts."""
        rows: list[dict[str, Any]] = self.sql(query, params).to_pylist()
        return rows

    def _read_only(self, query: str, params: Mapping[str, Any] | None) -> pa.Table:
        _refuse_all_but_reading(self._connection.extract_statements(query))
        self._connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return self._connection.sql(query, params=params).to_arrow_table()
        finally:
            self._connection.execute("ROLLBACK")

    def _configure(self, memory_mib: int, registered: bool) -> None:
        execute = self._connection.execute
        execute("SET TimeZone = 'UTC'")
        execute("SET enable_progress_bar = false")
        execute(f"SET temp_directory = {_quoted(self._spill)}")
        execute(f"SET memory_limit = '{memory_mib}MiB'")
        off = [_WRONG_OPTIMIZER]
        if registered and duckdb.__version__.startswith("1."):
            off.append(_FAILING_OPTIMIZER)
        known = {name for (name,) in execute("SELECT name FROM duckdb_optimizers()").fetchall()}
        execute(f"SET disabled_optimizers = {_quoted(','.join(name for name in off if name in known))}")

    def _declare(self, name: str, dataset: ds.FileSystemDataset) -> None:
        """Make `stored_<name>` without rows."""
        self._connection.register("no_rows", dataset.schema.empty_table())
        self._connection.execute(f"CREATE TABLE no_{name} AS FROM no_rows")
        self._connection.unregister("no_rows")
        self._connection.execute(f"CREATE VIEW stored_{name} AS FROM no_{name}")

    def _bind(self, name: str, dataset: ds.FileSystemDataset) -> None:
        """Make `stored_<name>`, with every column of the schema also where older files lack it."""
        files = ", ".join(_quoted(file) for file in dataset.files)
        stored = f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
        if files:
            self._connection.execute(
                f"CREATE OR REPLACE VIEW stored_{name} AS FROM no_{name} UNION ALL BY NAME FROM {stored}"
            )

    def _comment(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Say in DuckDB what every view and column means, for `duckdb_views()` and `duckdb_columns()`."""
        columns = self._connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal")
        self._connection.execute(views.comments(columns.fetchall(), schemas))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what DuckDB and Arrow raise into a QueryError: its first paragraph, without the query's text."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        text = str(error).split("LINE 1:")[0].split("\n\n")[0]
        raise QueryError(" ".join(text.split())) from error


def _half_of_memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**21


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refuse_all_but_reading(statements: list[duckdb.Statement]) -> None:
    # DuckDB 2.0 has statements whose type its Python does not know: asking for the type raises ValueError.
    with suppress(ValueError):
        if len(statements) == 1 and statements[0].type in _READING:
            return
    raise QueryError("only one reading statement is run: SELECT, EXPLAIN, DESCRIBE, SHOW or SUMMARIZE")
