"""One DuckDB session: its settings and their order, the tables bound, the macros and views of `sql/` made.

Two bindings: DuckDB reads Parquet itself, or has no file access at all and reads registered Arrow datasets, as it does
from an object store. The project's own SQL takes the first. SQL that a user typed is confined, by locked settings and a
transaction that cannot write, and takes the first only where the kernel keeps it from other files as well.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.common import scratch
from pipeline.common.errors import AuditError
from pipeline.query import views

# Drops a filter on a hive column and returns wrong sums in 2.0.0; 1.5 has no such optimizer.
WRONG_OPTIMIZER = "partitioned_execution"
# Hands a scan the keys of a join; 1.5 fails to hand an Arrow scan those above 2^63 - 1, and so are kernel addresses.
_FAILING_OPTIMIZER = "join_filter_pushdown"

_CONFINEMENT = (
    "SET python_enable_replacements = false",
    "SET autoload_known_extensions = false",
    "SET autoinstall_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_BATCH_ROWS = 65_536
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class QueryError(AuditError):
    """A query cannot be answered; the message is one line."""


class Session:
    """A session over the tables of a warehouse.

    :param tables: the dataset of each table, as `warehouse.tables` gives them; one without files is an empty table.
    :param confined: for SQL that a user typed: one reading statement at a time and nothing but these tables.
    :param landlocked: the kernel keeps this process from all other files: let DuckDB read those of the tables.
    :param memory_bytes: most that DuckDB may use; default half of this machine's.
    """

    def __init__(
        self,
        tables: Mapping[str, ds.UnionDataset],
        *,
        confined: bool = False,
        landlocked: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        self._confined = confined
        self._reads_files = is_local(tables) and (landlocked or not confined)
        self._made: list[str] = []
        self._connection = duckdb.connect(":memory:")
        with _one_line_errors():
            self._configure(memory_bytes or half_of_memory_bytes())
            for name, dataset in tables.items():
                if self._reads_files:
                    self._declare(name, dataset)
                else:
                    self._connection.register(f"stored_{name}", dataset.to_table() if name == "runs" else dataset)
            if self._reads_files:
                self._keep_runs(tables["runs"])
            for statement in views.statements().values():
                self._make(statement)
            newest = self._name_the_newest_run()
            if confined:
                self._comment({name: dataset.schema for name, dataset in tables.items()})
            if self._reads_files:
                # Not sooner: each view made above would open every file to bind its columns.
                for name, dataset in tables.items():
                    if name != "runs":
                        self._bind(name, dataset, newest)
            if landlocked:
                files = ", ".join(_quoted(file) for dataset in tables.values() for file in files_of(dataset))
                self._connection.execute(f"SET allowed_paths = [{files}]")
            for setting in _CONFINEMENT if confined else ():
                self._connection.execute(setting)

    def sql(self, query: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one query and return its result; HUGEINT comes as decimal128(38, 0).

        :param params: values of the `$name` parameters in the query.
        """
        with self.stream(query, params) as reader:
            return reader.read_all()

    @contextmanager
    def stream(self, query: str, params: Mapping[str, Any] | None = None) -> Iterator[pa.RecordBatchReader]:
        """Run one query and yield a reader of its rows as they come; what that raises becomes a QueryError."""
        with _one_line_errors():
            if not self._confined:
                with self._reader(query, params) as reader:
                    yield reader
                return
            statements = self._connection.extract_statements(query)
            _refuse_all_but_reading(statements)
            _refuse_unused(params or {}, statements[0])
            self._connection.execute("BEGIN TRANSACTION READ ONLY")
            try:
                with self._reader(query, params) as reader:
                    yield reader
            finally:
                self._connection.execute("ROLLBACK")

    def rows(self, query: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Run one query and return its rows as dicts."""
        rows: list[dict[str, Any]] = self.sql(query, params).to_pylist()
        return rows

    def definitions(self) -> list[str]:
        """Return the statements that make its tables, macros and views, each after those that it names."""
        tables = self.rows("SELECT sql FROM duckdb_tables() WHERE schema_name = 'main' ORDER BY table_name")
        return [*(row["sql"] for row in tables), *self._made]

    def _reader(self, query: str, params: Mapping[str, Any] | None) -> pa.RecordBatchReader:
        # With parameters sql() of 1.5 gathers all rows in Python first, and execute() of 2.0 copies them.
        if params and duckdb.__version__.startswith("1."):
            return self._connection.execute(query, params).to_arrow_reader(_BATCH_ROWS)
        return self._connection.sql(query, params=params).to_arrow_reader(_BATCH_ROWS)

    def _configure(self, memory_bytes: int) -> None:
        execute = self._connection.execute
        execute("SET TimeZone = 'UTC'")
        execute("SET enable_progress_bar = false")
        execute(f"SET memory_limit = '{memory_bytes >> 20}MiB'")
        execute(f"SET temp_directory = {_quoted('' if self._confined else self._spill_directory())}")
        off = [WRONG_OPTIMIZER]
        if not self._reads_files and duckdb.__version__.startswith("1."):
            off.append(_FAILING_OPTIMIZER)
        known = {name for (name,) in execute("SELECT name FROM duckdb_optimizers()").fetchall()}
        execute(f"SET disabled_optimizers = {_quoted(','.join(name for name in off if name in known))}")

    def _spill_directory(self) -> str:
        """Make a directory for what does not fit into memory, not `.tmp` where the user stands."""
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        return stack.enter_context(scratch.directory("lru-spill."))

    def _declare(self, name: str, dataset: ds.UnionDataset) -> None:
        """Make `stored_<name>` of what is in memory."""
        self._connection.register("no_rows", dataset.schema.empty_table())
        self._connection.execute(f"CREATE TABLE memory_{name} AS FROM no_rows")
        self._connection.unregister("no_rows")
        self._make(f"CREATE VIEW stored_{name} AS FROM memory_{name};")

    def _keep_runs(self, runs: ds.UnionDataset) -> None:
        """Read the runs into memory: a row each, in a file of its own, which nearly every view asks for."""
        columns = ", ".join(map(_quoted, runs.schema.names))  # a later version's files have more
        for rows in _stored(runs):
            self._make(f"INSERT INTO memory_runs BY NAME SELECT COLUMNS(lambda name: name IN ({columns})) {rows};")

    def _bind(self, name: str, dataset: ds.UnionDataset, newest: str | None) -> None:
        """Give `stored_<name>` the rows of files, with every column of the schema also where older ones lack it."""
        rows = " UNION ALL BY NAME ".join((f"FROM memory_{name}", *_stored(dataset, newest)))
        self._make(f"CREATE OR REPLACE VIEW stored_{name} AS {rows};")

    def _name_the_newest_run(self) -> str | None:
        row = self._connection.execute("SELECT run_id FROM newest_run").fetchone()
        newest = row[0] if row else None
        self._make(f"CREATE OR REPLACE MACRO newest_run_id() AS {_quoted(newest) if newest else 'NULL'};")
        return newest

    def _make(self, statement: str) -> None:
        self._connection.execute(statement)
        self._made.append(statement)

    def _comment(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Say in DuckDB what every view and column means, for `duckdb_views()` and `duckdb_columns()`."""
        columns = self._connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal")
        self._connection.execute(views.comments(columns.fetchall(), schemas))


def is_local(tables: Mapping[str, ds.UnionDataset]) -> bool:
    """Return whether the files of these tables are in a directory of this machine."""
    return all(part.filesystem.type_name == "local" for dataset in tables.values() for part in dataset.children)


def files_of(dataset: ds.UnionDataset) -> list[str]:
    """Return the files of a table."""
    return [file for part in dataset.children for file in part.files]


def _stored(dataset: ds.UnionDataset, newest: str | None = None) -> Iterator[str]:
    """Yield what reads a table's files: for each schema version, whose files have the same columns.

    :param newest: the run whose files are read apart. By the filters, true as they are, DuckDB sees that no other
        file need be opened where that run is asked for.
    """
    for part in dataset.children:
        files_where: dict[str, list[str]] = {}
        for fragment in part.get_fragments():
            run_id = ds.get_partition_keys(fragment.partition_expression).get("run_id")
            where = f" WHERE run_id {'=' if run_id == newest else '!='} {_quoted(newest)}" if newest and run_id else ""
            files_where.setdefault(where, []).append(_quoted(fragment.path))
        for where, files in files_where.items():
            yield f"FROM read_parquet([{', '.join(files)}], hive_partitioning = false){where}"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what DuckDB and Arrow raise into a QueryError: its first paragraph, without the query's text."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        text = str(error).split("LINE 1:")[0].split("\n\n")[0]
        raise QueryError(" ".join(text.split())) from error


def half_of_memory_bytes() -> int:
    """Return half of this machine's memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refuse_all_but_reading(statements: list[duckdb.Statement]) -> None:
    # DuckDB 2.0 has statements whose type its Python does not know: asking for the type raises ValueError.
    with suppress(ValueError):
        if len(statements) == 1 and statements[0].type in _READING:
            return
    raise QueryError("only one reading statement is run: SELECT, EXPLAIN, DESCRIBE, SHOW or SUMMARIZE")


def _refuse_unused(params: Mapping[str, Any], statement: duckdb.Statement) -> None:
    used = statement.named_parameters
    unused = [name for name in params if name.lower() not in {name.lower() for name in used}]
    if unused:
        has = f"it has {', '.join(f'${name}' for name in sorted(used))}" if used else "it has no parameter"
        raise QueryError(f"the query does not use ${unused[0]}: {has}")
