"""The project's macros and views as one script for any DuckDB: its command line, Jupyter, harlequin."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow.dataset as ds

from pipeline.query.session import WRONG_OPTIMIZER, QueryError, Session, is_local

# SET takes no subquery, and a version without the optimizer refuses its name.
_SETTINGS = f"""\
SET TimeZone = 'UTC';
SET VARIABLE wrong_optimizer = (
    SELECT coalesce(any_value(name), '') FROM duckdb_optimizers() WHERE name = '{WRONG_OPTIMIZER}'
);
SET disabled_optimizers = getvariable('wrong_optimizer');
RESET VARIABLE wrong_optimizer;
"""


def script(tables: Mapping[str, ds.UnionDataset]) -> str:
    """Return SQL that makes the macros and views over these tables' files, again where they are there already.

    Raises QueryError for tables on an object store.
    """
    if not is_local(tables):
        raise QueryError("--print-init is for a warehouse in a directory: DuckDB itself has no access to this one")
    return "\n".join((_SETTINGS, *map(_replacing, Session(tables).definitions())))


def _replacing(statement: str) -> str:
    # harlequin splits at every semicolon, also at one in a comment.
    without_comments = re.sub(r"(?m)^ *--.*\n", "", statement)
    return re.sub(r"(?m)^CREATE (?!OR REPLACE )", "CREATE OR REPLACE ", without_comments, count=1).rstrip() + "\n"
