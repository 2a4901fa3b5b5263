"""A DuckDB session: its settings, the bound tables, and the macros and views of `sql/`.

The tables are bound in one of two ways. DuckDB reads the Parquet files itself, or it has no file access and reads
registered Arrow datasets, as it does for an object store. The project's own SQL uses the files. SQL that a user typed
is confined by locked settings and read-only transactions, and uses the files only where Landlock keeps the process from
all others.

To create a view DuckDB binds its columns, and binding a view over Parquet files opens them. With dozens of views that
would open every file dozens of times. The file binding therefore first creates each `_stored_<table>` over an empty
in-memory table with the right schema, creates the views of `sql/` over those, and then replaces `_stored_<table>` by a
view over the files.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.common import limits, scratch
from pipeline.common.errors import AuditError
from pipeline.query import views
from pipeline.query.views import sql_literal

# Drops a filter on a hive column in DuckDB 2.0.0, which makes sums wrong; 1.5 does not have this optimizer.
BROKEN_OPTIMIZER = "partitioned_execution"
# Passes the keys of a join to a scan. DuckDB 1.5 cannot pass keys above 2^63 - 1, such as kernel addresses, to Arrow.
_BROKEN_ARROW_OPTIMIZER = "join_filter_pushdown"

# In this order: without external access allowed_paths can no longer be set, and once locked no setting can.
_CONFINEMENT = (
    "SET python_enable_replacements = false",
    "SET autoload_known_extensions = false",
    "SET autoinstall_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_BATCH_ROWS = 65_536
# The end of a DuckDB error: a line of the query, and a mark below the place in it.
_QUOTED_QUERY = re.compile(r"^LINE \d+: .*\n *\^+$", re.MULTILINE)
_READ_STATEMENTS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class QueryError(AuditError):
    """A query cannot be answered. The message is one line."""


class Session:
    """A DuckDB connection with the tables of a warehouse and the macros and views of `sql/`.

    :param tables: the dataset of each table, from `warehouse.tables`. A dataset without files is an empty table.
    :param is_confined: run one read-only statement at a time and allow access to these tables only; for users' SQL.
    :param is_landlocked: the kernel restricts this process to the tables' files, so a confined DuckDB may read them.
    :param memory_bytes: memory limit of DuckDB; default half of what this process may use.
    :param threads: number of DuckDB's threads; default the CPUs that this process may use.
    """

    def __init__(
        self,
        tables: Mapping[str, ds.UnionDataset],
        *,
        is_confined: bool = False,
        is_landlocked: bool = False,
        memory_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._is_confined = is_confined
        self._definitions: list[str] = []
        with _one_line_errors():
            # DuckDB itself would take those of the machine, or of the topmost cgroup only.
            memory_limit = f"{(memory_bytes or half_of_memory_bytes()) >> 20}MiB"
            threads = threads or limits.cpus()
            self._connection = duckdb.connect(":memory:", config={"threads": threads, "memory_limit": memory_limit})
            self._configure()
            if is_local(tables) and (is_landlocked or not is_confined):
                self._bind_files(tables)
            else:
                self._bind_arrow(tables)
            if is_confined:
                for setting in _CONFINEMENT:
                    self._connection.execute(setting)

    def sql(self, query: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one query and return its result; HUGEINT comes as decimal128(38, 0).

        :param params: values of the `$name` parameters in the query.
        """
        with self.stream(query, params) as reader:
            return reader.read_all()

    @contextmanager
    def stream(self, query: str, params: Mapping[str, Any] | None = None) -> Iterator[pa.RecordBatchReader]:
        """Run one query and yield a reader of its rows as DuckDB produces them.

        :raises QueryError: also for an error while the reader is in use.
        """
        with _one_line_errors():
            if not self._is_confined:
                with self._reader(query, params) as reader:
                    yield reader
                return
            statements = self._connection.extract_statements(query)
            _require_read_statement(statements)
            _reject_unused_params(params or {}, statements[0])
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
        """Return the statements that create the session's tables, macros and views, each after its dependencies."""
        tables = self.rows("SELECT sql FROM duckdb_tables() WHERE schema_name = 'main' ORDER BY table_name")
        return [*(row["sql"] for row in tables), *self._definitions]

    def _reader(self, query: str, params: Mapping[str, Any] | None) -> pa.RecordBatchReader:
        # With parameters, sql() of DuckDB 1.5 first collects all rows in Python, and execute() of 2.0 copies them.
        if params and duckdb.__version__.startswith("1."):
            return self._connection.execute(query, params).to_arrow_reader(_BATCH_ROWS)
        return self._connection.sql(query, params=params).to_arrow_reader(_BATCH_ROWS)

    def _configure(self) -> None:
        execute = self._connection.execute
        execute("SET TimeZone = 'UTC'")
        execute("SET enable_progress_bar = false")
        execute(f"SET temp_directory = {sql_literal('' if self._is_confined else self._spill_directory())}")

    def _spill_directory(self) -> str:
        """Create a directory for data beyond the memory limit; DuckDB's default is `.tmp` in the working directory."""
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        return stack.enter_context(scratch.directory("lru-spill."))

    def _bind_files(self, tables: Mapping[str, ds.UnionDataset]) -> None:
        """Create the views over empty tables, then put the Parquet files below them."""
        self._disable_optimizers(BROKEN_OPTIMIZER)
        for name, dataset in tables.items():
            self._create_empty(name, dataset.schema)
        self._load_runs(tables["runs"])
        newest_run_id = self._create_views(tables)
        for name, dataset in tables.items():
            if name != "runs":
                self._replace_by_files(name, dataset, newest_run_id)
        if self._is_confined:
            paths = ", ".join(sql_literal(path) for dataset in tables.values() for path in dataset_files(dataset))
            self._connection.execute(f"SET allowed_paths = [{paths}]")

    def _bind_arrow(self, tables: Mapping[str, ds.UnionDataset]) -> None:
        """Register the datasets, then create the views over them."""
        is_broken = duckdb.__version__.startswith("1.")
        self._disable_optimizers(BROKEN_OPTIMIZER, *([_BROKEN_ARROW_OPTIMIZER] if is_broken else []))
        for name, dataset in tables.items():
            self._connection.register(f"_stored_{name}", _run_rows(dataset) if name == "runs" else dataset)
        self._create_views(tables)

    def _disable_optimizers(self, *names: str) -> None:
        """Disable optimizers; DuckDB refuses the name of one that it does not have."""
        rows = self._connection.execute("SELECT name FROM duckdb_optimizers()").fetchall()
        available = {name for (name,) in rows}
        disabled = ",".join(name for name in names if name in available)
        self._connection.execute(f"SET disabled_optimizers = {sql_literal(disabled)}")

    def _create_empty(self, name: str, schema: pa.Schema) -> None:
        """Create `_stored_<name>` over an empty in-memory table."""
        self._connection.register("no_rows", schema.empty_table())
        self._connection.execute(f"CREATE TABLE _memory_{name} AS FROM no_rows")
        self._connection.unregister("no_rows")
        self._define(f"CREATE VIEW _stored_{name} AS FROM _memory_{name};")

    def _load_runs(self, runs: ds.UnionDataset) -> None:
        """Copy the runs into memory: nearly every view reads them, and each is one row in a file of its own.

        The definitions read every file, so that they need no Arrow; here only files are read whose rows are not known.
        """
        columns = ", ".join(map(sql_literal, runs.schema.names))  # files of a later version have more columns
        for part in runs.children:
            scans = (f"SELECT COLUMNS(lambda name: name IN ({columns})) {scan}" for scan in _scans(part))
            insertions = [f"INSERT INTO _memory_runs BY NAME {scan};" for scan in scans]
            self._definitions += insertions
            if rows := _known_rows(part):
                self._connection.register("known_rows", pa.Table.from_pylist(rows, schema=runs.schema))
                self._connection.execute("INSERT INTO _memory_runs BY NAME FROM known_rows")
                self._connection.unregister("known_rows")
            else:
                self._connection.execute("\n".join(insertions))

    def _create_views(self, tables: Mapping[str, ds.UnionDataset]) -> str | None:
        """Create the macros and views of `sql/` and return the newest run's id.

        newest_run_id() is created as a constant: DuckDB then knows which run a view asks for before it opens any file,
        and does not bind the search for the newest run again in each view.
        """
        newest_run_id = None
        for name, statement in views.statements().items():
            if name == "newest_run_id":
                row = self._connection.execute("SELECT run_id FROM _newest_run").fetchone()
                newest_run_id = row[0] if row else None
                constant = sql_literal(newest_run_id) if newest_run_id else "NULL"
                self._define(f"CREATE MACRO newest_run_id() AS {constant};")
            else:
                self._define(statement)
        if self._is_confined:
            self._comment({name: dataset.schema for name, dataset in tables.items()})
        return newest_run_id

    def _comment(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Add the comments of views, macros and columns, which `duckdb_views()` and `duckdb_columns()` show."""
        columns = self._connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal")
        self._connection.execute(views.comments(columns.fetchall(), schemas))

    def _replace_by_files(self, name: str, dataset: ds.UnionDataset, newest_run_id: str | None) -> None:
        """Replace `_stored_<name>` by a view over the files.

        The empty table stays part of it for the columns that older files lack.
        """
        scans = (scan for part in dataset.children for scan in _scans(part, newest_run_id))
        rows = " UNION ALL BY NAME ".join((f"FROM _memory_{name}", *scans))
        self._define(f"CREATE OR REPLACE VIEW _stored_{name} AS {rows};")

    def _define(self, statement: str) -> None:
        self._connection.execute(statement)
        self._definitions.append(statement)


def is_local(tables: Mapping[str, ds.UnionDataset]) -> bool:
    """Whether the files of these tables are in a directory of this machine."""
    return all(part.filesystem.type_name == "local" for dataset in tables.values() for part in dataset.children)


def dataset_files(dataset: ds.UnionDataset) -> list[str]:
    """Return the paths of a table's files."""
    return [path for part in dataset.children for path in part.files]


def _run_rows(runs: ds.UnionDataset) -> pa.Table:
    """Return the rows of the table `runs`, and read only files whose rows are not known."""
    parts = ((part, _known_rows(part)) for part in runs.children)
    return pa.concat_tables(
        pa.Table.from_pylist(rows, schema=runs.schema) if rows else part.to_table() for part, rows in parts
    )


def _known_rows(part: ds.FileSystemDataset) -> list[dict[str, Any]]:
    """Return the rows of files that are partitions of every column; no rows if any file is not."""
    rows = [ds.get_partition_keys(fragment.partition_expression) for fragment in part.get_fragments()]
    return rows if all(row.keys() >= set(part.schema.names) for row in rows) else []


def _scans(part: ds.FileSystemDataset, newest_run_id: str | None = None) -> Iterator[str]:
    """Yield FROM clauses that read the files of one schema version.

    :param newest_run_id: read this run's files in a clause of their own. Each clause then has a filter on run_id that
        is true for all of its rows, so that DuckDB opens no other file for a query of the newest run.
    """
    paths_by_filter: dict[str, list[str]] = {}
    for fragment in part.get_fragments():
        run_filter = ""
        if newest_run_id and (run_id := ds.get_partition_keys(fragment.partition_expression).get("run_id")):
            run_filter = f" WHERE run_id {'=' if run_id == newest_run_id else '!='} {sql_literal(newest_run_id)}"
        paths_by_filter.setdefault(run_filter, []).append(sql_literal(fragment.path))
    for run_filter, paths in paths_by_filter.items():
        yield f"FROM read_parquet([{', '.join(paths)}], hive_partitioning = false){run_filter}"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raise an error of DuckDB or Arrow as a QueryError: all its lines as one, without those that quote the query."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:  # the other paragraphs advise settings that are the session's
        raise QueryError(" ".join(str(error).partition("\n\n")[0].split())) from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise QueryError(" ".join(_QUOTED_QUERY.sub("", str(error)).split())) from error


def half_of_memory_bytes() -> int:
    """Return half of the memory that this process may use, in bytes."""
    return limits.memory_bytes() // 2


def _require_read_statement(statements: list[duckdb.Statement]) -> None:
    # DuckDB 2.0 has statements whose type its Python package does not know: reading the type raises ValueError.
    with suppress(ValueError):
        if len(statements) == 1 and statements[0].type in _READ_STATEMENTS:
            return
    raise QueryError("only one reading statement is run: SELECT, EXPLAIN, DESCRIBE, SHOW or SUMMARIZE")


def _reject_unused_params(params: Mapping[str, Any], statement: duckdb.Statement) -> None:
    names = statement.named_parameters
    lowercase_names = {name.lower() for name in names}
    unused_params = [name for name in params if name.lower() not in lowercase_names]
    if unused_params:
        has = f"it has {', '.join(f'${name}' for name in sorted(names))}" if names else "it has no parameter"
        raise QueryError(f"the query does not use ${unused_params[0]}: {has}")
