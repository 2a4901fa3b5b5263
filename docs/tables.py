"""Write docs/tables.md: every column of every table, view and macro, from `schemas/`, `sql/` and DuckDB's own types.

python -m docs.tables
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline import query, warehouse
from pipeline.query import views
from pipeline.warehouse import schema

FILE = Path(__file__).with_suffix(".md")

_INTRO = """\
<!-- Written by `python -m docs.tables`; do not edit. -->
# Tables, views and macros

The tables of the warehouse's Parquet files, and the views and macros that `lru-audit sql` adds. A table has the rows of
every published run. A view has those of the newest run, `newest_run_id()`, unless its question names other runs. The
macro of a view takes any run, and so any audit:

```sql
FROM host_waste_at((SELECT run_id FROM latest_runs WHERE audit = 'prod'));
```

`lru-audit sql` shows the same texts: `SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'growth'`.
In the Parquet files they are the fields' metadata. Bytes are exact integers: the rows of each breakdown of `host_waste`
sum to it.
"""


def markdown() -> str:
    """Return the whole document."""
    return "\n".join([_INTRO, *_tables(), *_views()]) + "\n"


def _tables() -> Iterator[str]:
    yield f"## Tables\n\nSchema version {schema.VERSION}; a later version only adds nullable columns.\n"
    for name, table in schema.tables().items():
        yield f"### {name}\n\n{_cell(table.meaning)}.\n"
        yield "| column | type | unit | null | meaning | kernel source |\n|---|---|---|---|---|---|"
        for column in table.columns:
            meaning = f"One of {_codes(column.values)}. {column.meaning}" if column.values else column.meaning
            null = "yes" if column.nullable else ""
            source = f"`{column.source}`" if column.source else ""
            yield _row(f"`{column.name}`", str(column.field.type), column.unit or "", null, meaning, source)
        yield ""


def _views() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as empty:
        tables = warehouse.tables(Path(empty))
        session = query.Session(tables)
    schemas = {name: dataset.schema for name, dataset in tables.items()}
    names = sorted(name for name in views.statements() if not name.endswith("_at") and not name.startswith("_"))
    yield "## Views and macros\n\n| | question |\n|---|---|"
    for name in names:
        yield _row(f"[{name}](#view-{name})", views.question(name))
    yield ""
    for name in names:
        statement = views.statements()[name]
        run_macro = f"{name}_at" if f"{name}_at" in views.statements() else name
        yield f'<a id="view-{name}"></a>\n'
        yield f"### {name if 'CREATE VIEW' in statement else _signature(name)}\n"
        details = views.opening_comment(run_macro).removeprefix(views.question(run_macro))
        yield _cell(views.question(name) + details) + "\n"
        if run_macro != name:
            yield f"Of a given run: `{_signature(run_macro)}`.\n"
        if "CREATE VIEW" in statement:
            yield from _columns(session, name, name, schemas)
        elif " AS TABLE\n" in statement:
            yield from _columns(session, name, re.sub(r"(?<=[(,])[\w ]+", "NULL", _signature(name)), schemas)
    yield "## Internal views and macros\n\nThe views above read these, which may change in any version.\n"
    yield "| | question |\n|---|---|"
    for name in sorted(name for name in views.statements() if name.startswith("_")):
        yield _row(f"`{name}`", views.question(name))


def _columns(session: query.Session, name: str, relation: str, schemas: dict[str, pa.Schema]) -> Iterator[str]:
    rows = session.rows(f"DESCRIBE FROM {relation}")
    if table := views.table_of(name, schemas):
        rows = [row for row in rows if row["column_name"] not in schemas[table].names]
        yield f"The columns of the table `{table}`{', and' if rows else '.'}" + "\n" * bool(rows)
    if rows:
        yield "| column | type | unit | meaning |\n|---|---|---|---|"
    for row in rows:
        column = views.column(name, row["column_name"], schemas)
        assert column, f"sql/columns.toml has no {name}.{row['column_name']}"
        yield _row(f"`{row['column_name']}`", row["column_type"], column.unit or "", column.meaning)
    yield ""


def _signature(name: str) -> str:
    match = re.search(rf"CREATE MACRO ({name}\(.*?\))", views.statements()[name])
    assert match
    return match.group(1)


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return re.sub(r"([|<*]|(?<!`)_(?=_))", r"\\\1", text)


def _codes(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


if __name__ == "__main__":
    FILE.write_text(markdown(), encoding="utf-8")
