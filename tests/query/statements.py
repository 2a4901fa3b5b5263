"""Random hostile statements: a call of each function that DuckDB has, and damaged statements of `sql/`.

Placeholders such as {out} stand for the paths and addresses of a scenario.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import duckdb

from pipeline.query import views

TEXTS = (
    "'{canary}'", "'{parquet_canary}'", "'{published}'", "'{out}'", "'{unix}'", "'http://{tcp}/x'", "'{warehouse}/**'",
    "'/proc/self/environ'", "'/proc/self/fd/0'", "'COPY targets TO ''{out}'''", "'FROM read_text(''{canary}'')'",
    "''", "'x'", "repeat('x', 100000)", "'(a+)+$'", "'%n%s%1000000000d'", "chr(0)", "'$..*'", "'[[[[[[[[[[['",
    "'day'", "'2020-01-01'", "'infinity'",
)  # fmt: skip
NUMBERS = (
    "0", "-1", "1", "2147483647", "9223372036854775807", "(-9223372036854775807 - 1)", "1e308", "'nan'::DOUBLE",
    "'-inf'::FLOAT", "170141183460469231731687303715884105727",
)  # fmt: skip
OTHERS = (
    "NULL", "[]", "[1, NULL]", "[[[[]]]]", "range(100000)", "{'a': 1}", "map {'a': 1}", "'\\xFF'::BLOB", "'101'::BIT",
    "'infinity'::TIMESTAMP", "'-infinity'::DATE", "'290000-01-01'::DATE", "TIME '24:00:00'", "true", "lambda x: x",
    "INTERVAL '2147483647 months'", "(FROM targets)", "(SELECT target FROM targets)", "unnest([1, 2])", "*",
    "'{}'::JSON",
)  # fmt: skip
FRAGMENTS = (
    "COPY targets TO '{out}'", "read_text('{canary}')", "'{parquet_canary}'", "getenv('LRU_CANARY')",
    "; DROP VIEW targets", "(", ")", "--", "/*", "*", "WITH RECURSIVE", "UNION ALL", "LATERAL", "PIVOT", "NULL", "$1",
    "'", '"', "\x01", "\U0001f4a3",
)  # fmt: skip


class Function(NamedTuple):
    name: str
    kind: str
    parameter_types: list[str]
    variable_type: str | None


def functions() -> list[Function]:
    """Every signature of every function, table function, macro and pragma of the installed DuckDB."""
    columns = "function_name, function_type, list_transform(parameter_types, lambda x: coalesce(x, 'ANY')), varargs"
    return [
        Function(name, kind, types or [], variable_type)
        for name, kind, types, variable_type in duckdb.sql(
            f"SELECT {columns} FROM duckdb_functions() ORDER BY ALL"
        ).fetchall()
    ]


def calls(rng: random.Random) -> Iterator[str]:
    """Yield a statement that calls a function with hostile arguments, for each signature."""
    for function in functions():
        types = function.parameter_types + [function.variable_type or "ANY"] * (
            rng.randrange(3) if function.variable_type else 0
        )
        call = f'"{function.name}"({", ".join(_argument(rng, kind) for kind in types)})'
        if function.kind in ("table", "table_macro"):
            yield f"FROM {call}"
        elif function.kind == "pragma":
            yield rng.choice((f"PRAGMA {call}", f"CALL {call}", f"FROM pragma_{call.replace(chr(34), '')}"))
        elif function.kind in ("aggregate", "window"):
            window = rng.choice(("", " OVER ()", " OVER (ORDER BY range ROWS 1 PRECEDING)"))
            yield f"SELECT {call}{window} FROM range(5)"
        else:
            yield f"SELECT {call}{rng.choice(('', ' FROM range(5)', ' FROM targets'))}"


def damaged(rng: random.Random) -> Iterator[str]:
    """Yield each statement of `sql/` with words that are removed, repeated or replaced by fragments."""
    for statement in views.statements().values():
        words = re.findall(r"\w+|\s+|[^\w\s]", statement.partition(" AS")[2])
        for _ in range(rng.randrange(1, 4)):
            index = rng.randrange(len(words))
            words[index : index + rng.randrange(2)] = rng.choice(
                ([], words[index : index + 3] * 2, [rng.choice(FRAGMENTS)])
            )
        yield "".join(words)


def _argument(rng: random.Random, type_name: str) -> str:
    if rng.random() < 0.2:
        return rng.choice(OTHERS)
    if type_name.endswith("[]"):
        return f"[{_argument(rng, type_name.removesuffix('[]'))}]"
    if "VARCHAR" in type_name or type_name == "JSON":
        return rng.choice(TEXTS)
    if re.search("INT|DOUBLE|FLOAT|DECIMAL|NUM", type_name):
        return rng.choice(NUMBERS)
    if re.search("DATE|TIME|INTERVAL|BLOB|BIT|BOOLEAN", type_name):
        return f"TRY_CAST({rng.choice(TEXTS)} AS {type_name})"
    return rng.choice((*TEXTS, *NUMBERS, *OTHERS))
