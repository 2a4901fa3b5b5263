"""The macros and views of `sql/`: the order to make them in, and what DuckDB is told of each and of its columns.

A view's comment is the question on top of its file. A column's is its meaning: that of its table's schema, or of
`sql/columns.toml` for what only views have.
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


class Column(NamedTuple):
    """What a column means; `unit` where it has one."""

    meaning: str
    unit: str | None


@cache
def statements() -> dict[str, str]:
    """Return every statement of `sql/macros/` and `sql/views/` by what it makes, each after those that it names."""
    folder = data.path("sql")
    texts = {
        file.stem: file.read_text("utf-8") for kind in ("macros", "views") for file in folder.glob(f"{kind}/*.sql")
    }
    sorter = TopologicalSorter({name: sorted(_read(text) & texts.keys()) for name, text in sorted(texts.items())})
    return {name: texts[name] for name in sorter.static_order()}


def said_on_top(name: str) -> str:
    """Return the comment on top of the file that makes a macro or view: the question, and what to know of it."""
    lines = statements()[name].splitlines()
    return " ".join(line.removeprefix("-- ") for line in lines[: lines.index(next(filter(_is_code, lines)))])


def question(name: str) -> str:
    """Return the question that a macro or view answers."""
    return said_on_top(name).partition("?")[0] + "?"


def column(view: str, name: str, tables: Mapping[str, pa.Schema]) -> Column | None:
    """Return what a column of a view means, None where nothing says so.

    :param tables: the schema of each table, with meaning and unit in the fields' metadata.
    """
    own = table_of(view, tables)
    if own and name in tables[own].names:
        return _declared(tables[own].field(name))
    if name in of_views():
        return of_views()[name]
    return next((_declared(tables[table].field(name)) for table in _SEARCHED if name in tables[table].names), None)


@cache
def of_views() -> dict[str, Column]:
    """Return what `sql/columns.toml` says, by the column's name."""
    content = tomllib.loads((data.path("sql") / "columns.toml").read_text("utf-8"))
    return {name: Column(entry["meaning"], entry.get("unit")) for name, entry in content.items()}


def table_of(view: str, tables: Mapping[str, pa.Schema]) -> str | None:
    """Return the table whose rows a view shows, None where it makes its own."""
    name = re.sub("^(latest|sized|unrevised)_", "", view)
    return name if name in tables else None


def comments(columns: Iterable[tuple[str, str]], tables: Mapping[str, pa.Schema]) -> str:
    """Return the COMMENT statements for the macros, the views and their columns.

    :param columns: view and name of each column.
    """
    made = []
    for name, text in statements().items():
        kind = "VIEW" if "CREATE VIEW" in text else "MACRO TABLE" if " AS TABLE\n" in text else "MACRO"
        made.append(f"COMMENT ON {kind} {name} IS {_quoted(said_on_top(name))}")
    for view, name in columns:
        if view in statements() and (found := column(view, name, tables)):
            said = f"{found.meaning} [{found.unit}]" if found.unit else found.meaning
            made.append(f'COMMENT ON COLUMN {view}."{name}" IS {_quoted(said)}')
    return ";\n".join(made)


_SEARCHED = ("targets", "superblocks", "list_lrus", "memcgs", "runs", "attempts")


def _declared(field: pa.Field) -> Column:
    said = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
    return Column(said.get("meaning", ""), said.get("unit"))


def _read(text: str) -> set[str]:
    """Return the names that a statement reads from or calls, after `CREATE ... AS`."""
    code = "\n".join(filter(_is_code, text.splitlines())).partition(" AS")[2]
    return {table or called for table, called in re.findall(r"\b(?:FROM|JOIN)\s+(\w+)|(\w+)\(", code)}


def _is_code(line: str) -> bool:
    return not line.lstrip().startswith("--")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
