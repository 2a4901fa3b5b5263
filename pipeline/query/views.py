"""The macros and views of `sql/`: their order of creation and the comments that DuckDB shows for them.

A view's comment is the comment on top of its file, which begins with the question that the view answers. A column's
comment is its meaning, from its table's schema or, for columns that only views have, from `sql/columns.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import TopologicalSorter
from typing import NamedTuple

import pyarrow as pa

from pipeline.common import data

# Tables in which to look up a column that a view took over, the most likely first.
_COLUMN_SOURCES = (
    "targets", "superblocks", "list_lrus", "memcgs", "memcg_memory", "dying_memcg_pages", "runs", "attempts",
)  # fmt: skip


class Column(NamedTuple):
    """The meaning of a column, and its unit if it has one."""

    meaning: str
    unit: str | None


@cache
def statements() -> dict[str, str]:
    """Return the statements of `sql/macros/` and `sql/views/` by name, each after its dependencies."""
    directory = data.path("sql")
    texts = {
        file.stem: file.read_text("utf-8") for kind in ("macros", "views") for file in directory.glob(f"{kind}/*.sql")
    }
    dependencies = {name: sorted(_referenced_names(text) & texts.keys()) for name, text in sorted(texts.items())}
    return {name: texts[name] for name in TopologicalSorter(dependencies).static_order()}


def opening_comment(name: str) -> str:
    """Return the comment on top of the file of a macro or view: its question, then details."""
    lines = statements()[name].splitlines()
    return " ".join(line.removeprefix("-- ") for line in lines[: lines.index(next(filter(_is_code, lines)))])


def question(name: str) -> str:
    """Return the question that a macro or view answers."""
    return opening_comment(name).partition("?")[0] + "?"


def column(view: str, name: str, tables: Mapping[str, pa.Schema]) -> Column | None:
    """Return the meaning of a view's column, or None if it is not documented.

    :param tables: the schema of each table, with meaning and unit in the fields' metadata.
    """
    table = table_of(view, tables)
    if table and name in tables[table].names:
        return _field_column(tables[table].field(name))
    if name in view_columns():
        return view_columns()[name]
    fields = (tables[source].field(name) for source in _COLUMN_SOURCES if name in tables[source].names)
    return next(map(_field_column, fields), None)


@cache
def view_columns() -> dict[str, Column]:
    """Return the columns that only views have, by name, from `sql/columns.toml`."""
    content = tomllib.loads((data.path("sql") / "columns.toml").read_text("utf-8"))
    return {name: Column(entry["meaning"], entry.get("unit")) for name, entry in content.items()}


def table_of(view: str, tables: Mapping[str, pa.Schema]) -> str | None:
    """Return the table whose rows a view shows unchanged, or None if the view computes its rows."""
    name = re.sub("^_?(latest|sized|unrevised)_", "", view)
    return name if name in tables else None


def comments(columns: Iterable[tuple[str, str]], tables: Mapping[str, pa.Schema]) -> str:
    """Return the COMMENT statements for the macros, the views and their columns.

    :param columns: view and name of each column.
    """
    commands = []
    for name, text in statements().items():
        kind = "VIEW" if "CREATE VIEW" in text else "MACRO TABLE" if " AS TABLE\n" in text else "MACRO"
        commands.append(f"COMMENT ON {kind} {name} IS {sql_literal(opening_comment(name))}")
    for view, name in columns:
        if view in statements() and (entry := column(view, name, tables)):
            unit = f" [{entry.unit}]" if entry.unit else ""
            commands.append(f'COMMENT ON COLUMN {view}."{name}" IS {sql_literal(entry.meaning + unit)}')
    return ";\n".join(commands)


def sql_literal(text: str) -> str:
    """Return the text as a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _field_column(field: pa.Field) -> Column:
    metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
    return Column(metadata.get("meaning", ""), metadata.get("unit"))


def _referenced_names(text: str) -> set[str]:
    """Return the names that a statement reads from or calls, after `CREATE ... AS`."""
    code = "\n".join(filter(_is_code, text.splitlines())).partition(" AS")[2]
    return {table or function for table, function in re.findall(r"\b(?:FROM|JOIN)\s+(\w+)|(\w+)\(", code)}


def _is_code(line: str) -> bool:
    return not line.lstrip().startswith("--")
